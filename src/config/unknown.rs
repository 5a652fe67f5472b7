//! Suggestions for names that are not in the table of keys.

use super::key;

/// Returns whether `name` is a section, or the beginning of the name of one.
pub(super) fn is_section(name: &str) -> bool {
    let is_above = |section: &str| {
        section.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    key::sections().into_iter().any(is_above)
}

/// Returns a suggestion for an unknown name, or else the names that exist.
pub(super) fn instead_of(name: &str) -> String {
    let sections = key::sections();
    let keys = key::KEYS.iter().map(|key| key.name);
    if let Some(nearest) = nearest(name, keys.chain(sections.iter().copied())) {
        return format!("did you mean {nearest}?");
    }
    let (section, _) = key::split(name);
    let inside = |key: &key::Key| key::split(key.name).0 == section;
    let known: Vec<_> = key::KEYS.iter().filter(|key| inside(key)).map(|key| key.name).collect();
    if !known.is_empty() {
        return format!("[{section}] has {}", known.join(", "));
    }
    match nearest(section, sections.iter().copied()) {
        Some(nearest) => format!("did you mean [{nearest}]?"),
        None => format!("the sections are {}", sections.join(", ")),
    }
}

/// Returns the candidate with the fewest edits, at most one for every three letters.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = candidates.map(|candidate| (edits(name, candidate), candidate));
    let (edits, nearest) = rated.min_by_key(|(edits, _)| *edits)?;
    (edits <= name.len() / 3).then_some(nearest)
}

/// Returns the Levenshtein distance: letters added, removed or changed. Keeps one row of the table.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for ((b, diagonal), above) in to.iter().zip(&row).zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(a != *b)).min(left + 1).min(above + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
