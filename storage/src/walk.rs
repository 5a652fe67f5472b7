//! All records of a kind, the oldest first, some at a time: however many there are, memory holds a
//! page of them.

use crate::{ReadError, Store};
use iptunnel_domain::activation::Activation;
use iptunnel_domain::code::Code;

/// Records of a page.
pub(crate) const PAGE: usize = 500;

/// Every code.
pub(crate) fn codes(store: &dyn Store) -> impl Iterator<Item = Result<Vec<Code>, ReadError>> {
    pages(|after| store.oldest_codes(after, PAGE), |code| code.number)
}

/// Every activation.
pub(crate) fn activations(
    store: &dyn Store,
) -> impl Iterator<Item = Result<Vec<Activation>, ReadError>> {
    pages(|after| store.oldest_activations(after, PAGE), |activation| activation.at.number)
}

/// The pages that `read` reads, each behind the last record of the one before; ends with an error.
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
