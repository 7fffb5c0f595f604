//! The bytes of an HTTP/2 connection on their way through the stream that forgives `:authority` its percent signs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sds_shim::sds::fuzz::authority(data));
