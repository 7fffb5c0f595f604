//! Answers of nameservers, and the files of the resolver.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sds_shim::resolve::fuzz::names(data));
