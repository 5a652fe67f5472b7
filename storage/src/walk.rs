//! Iterates over all records of a kind, the oldest first, one page at a time, so memory holds one
//! page only.

use crate::{ReadError, Store};
use iptunnel_domain::activation::Activation;
use iptunnel_domain::code::Code;

/// Records per page.
pub(crate) const PAGE: usize = 500;

/// Iterates over all codes.
pub(crate) fn codes(store: &dyn Store) -> impl Iterator<Item = Result<Vec<Code>, ReadError>> {
    pages(|after| store.oldest_codes(after, PAGE), |code| code.number)
}

/// Iterates over all activations.
pub(crate) fn activations(
    store: &dyn Store,
) -> impl Iterator<Item = Result<Vec<Activation>, ReadError>> {
    pages(|after| store.oldest_activations(after, PAGE), |activation| activation.at.number)
}

/// Returns the pages that `read` reads, each after the last record of the page before. Ends with an
/// error.
fn pages<R, K: Copy>(
    read: impl Fn(Option<K>) -> Result<Vec<R>, ReadError>,
    number: impl Fn(&R) -> K,
) -> impl Iterator<Item = Result<Vec<R>, ReadError>> {
    let (mut after, mut is_over) = (None, false);
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let page = read(after);
        match &page {
            Ok(page) => after = Some(number(page.last()?)),
            Err(_) => is_over = true,
        }
        Some(page)
    })
}
