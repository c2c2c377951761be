"""Self-supervised pre-training of the phonocardiogram backbone."""
