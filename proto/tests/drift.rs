//! The generated code that is checked in is exactly what the `.proto` files give.
//!
//! `UPDATE_PROTO=1 cargo test -p sds-shim-proto` writes it anew.

use std::{fs, path::Path};

const ENTRY_POINTS: [&str; 6] = [
    "envoy/service/secret/v3/sds.proto",
    "envoy/extensions/transport_sockets/tls/v3/secret.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "grpc/health/v1/health.proto",
    "istio/v1/auth/ca.proto",
    "spiffe/workload.proto",
];

#[test]
fn generated_code_matches_the_definitions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = root.join("../target/proto-drift");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).unwrap();
    let descriptors = protox::compile(ENTRY_POINTS, [root.join("proto")]).unwrap();
    let mut prost = prost_build::Config::new();
    prost
        .compile_well_known_types()
        .bytes(["."])
        .btree_map(["."])
        // A request may name the bearer of a key: nothing that holds key bytes can be printed.
        .skip_debug([
            ".google.protobuf.Any",
            ".envoy.config.core.v3.TypedExtensionConfig",
            ".envoy.config.core.v3.DataSource",
            ".envoy.extensions.transport_sockets.tls.v3",
            ".envoy.service.discovery.v3.DiscoveryResponse",
            ".envoy.service.discovery.v3.DeltaDiscoveryResponse",
            ".envoy.service.discovery.v3.Resource",
            ".envoy.service.discovery.v3.DiscoveryRequest",
            ".envoy.service.discovery.v3.DeltaDiscoveryRequest",
            ".google.rpc.Status",
            ".X509SVID",
            ".X509SVIDResponse",
            ".JWTSVID",
            ".JWTSVIDResponse",
            ".ValidateJWTSVIDRequest",
        ]);
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::SmallCodec")
        .out_dir(&fresh)
        .include_file("mod.rs")
        .compile_fds_with_config(descriptors, prost)
        .unwrap();

    let checked_in = root.join("src/generated");
    if std::env::var_os("UPDATE_PROTO").is_some() {
        let _ = fs::remove_dir_all(&checked_in);
        fs::create_dir_all(&checked_in).unwrap();
        for file in listing(&fresh) {
            fs::copy(fresh.join(&file), checked_in.join(&file)).unwrap();
        }
    }
    assert_eq!(listing(&fresh), listing(&checked_in), "run with UPDATE_PROTO=1");
    for file in listing(&fresh) {
        let (new, old) = (fs::read(fresh.join(&file)).unwrap(), fs::read(checked_in.join(&file)).unwrap());
        assert!(new == old, "{file} differs from what the definitions give: run with UPDATE_PROTO=1");
    }
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
