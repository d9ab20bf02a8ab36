// Runs before the first paint, so that the page does not flash in the other theme.
(function () {
  let stored = null;
  try {
    stored = localStorage.getItem("bitpager.theme");
  } catch {
    // no storage: the system's theme
  }
  if (stored === "dark" || stored === "light") document.documentElement.dataset.theme = stored;
})();
