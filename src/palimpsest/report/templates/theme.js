// Before the first paint: the theme that the reader chose last time, and the mark that scripts run.
(function () {
  var root = document.documentElement;
  root.classList.add("js");
  try {
    var theme = localStorage.getItem("palimpsest-theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch (_) { /* storage is closed to us: the system's theme it is */ }
})();
