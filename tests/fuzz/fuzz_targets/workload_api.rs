//! What a SPIFFE Workload API sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sds_shim::spiffe::fuzz::workload_api(data));
