//! SDS requests as they come from the wire, through decoder, limits and state machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sds_shim::sds::fuzz::requests(data));
