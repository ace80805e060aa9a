//! Fuzzes a checkpoint on its way from another node; the body is in `tests/fuzz_kit`.
#![no_main]

#[path = "../../tests/fuzz_kit/mod.rs"]
mod fuzz_kit;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_kit::run("checkpoint_stream", input);
});
