() => {
  // Screen readers announce new answers, and the language of the page is known.
  document.documentElement.lang = "en";
  for (const id of ["verdict", "table"]) {
    const place = document.getElementById(id);
    if (place) place.setAttribute("aria-live", "polite");
  }
}
