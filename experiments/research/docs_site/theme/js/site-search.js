/* Search without a server: every word asked for has to be in a section; titles count more than text. */
(() => {
  "use strict";
  const MOST = 20;
  const SHOWN = 160;
  const query = document.getElementById("mkdocs-search-query");
  const results = document.getElementById("mkdocs-search-results");
  const sections = window.searchIndex.map((section) => ({
    ...section, titleWords: `${section.page} ${section.title}`.toLowerCase(), words: section.text.toLowerCase(),
  }));

  function score(section, words) {
    let sum = 0;
    for (const word of words) {
      const inTitle = section.titleWords.includes(word);
      if (!inTitle && !section.words.includes(word)) return 0;
      sum += (inTitle ? 10 : 0) + Math.min(section.words.split(word).length - 1, 5);
    }
    return sum;
  }

  function excerpt(section, word) {
    const at = Math.max(0, section.words.indexOf(word) - SHOWN / 3);
    const text = section.text.slice(at, at + SHOWN);
    return `${at > 0 ? "…" : ""}${text}${at + SHOWN < section.text.length ? "…" : ""}`;
  }

  function search() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    results.replaceChildren();
    if (!words.length) return;
    const found = sections.map((section) => [score(section, words), section]).filter(([points]) => points > 0);
    found.sort((a, b) => b[0] - a[0]);
    for (const [, section] of found.slice(0, MOST)) {
      const link = document.createElement("a");
      link.href = `${base_url}/${section.url}`;
      link.textContent = section.title === section.page ? section.page : `${section.page}: ${section.title}`;
      const text = document.createElement("p");
      text.textContent = excerpt(section, words[0]);
      results.append(link, text);
    }
    if (!found.length) results.textContent = "Nothing holds all of these words.";
  }

  query.addEventListener("input", search);
})();
