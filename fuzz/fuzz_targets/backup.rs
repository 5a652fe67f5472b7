#![no_main]

#[allow(dead_code)]
#[path = "../../tests/corpus/feed.rs"]
mod feed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = feed::manifest(bytes);
    let _ = feed::age(bytes);
});
