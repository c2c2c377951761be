"""hb_ssl: self-supervised audio foundation models fine-tuned for heart-sound classification."""

__version__ = "0.1.0"
