//! Envoy configurations, with SDS set up as Istio's bootstrap does it.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{ADMIN_SOCKET, ads::Resources, wire};
use crate::workload::SOCKET;

const SDS_CLUSTER: &str = "sds-grpc";
/// Name of the cluster of the control plane.
pub const XDS_CLUSTER: &str = "xds-grpc";
const APPLICATION: &str = "application";
const BEARER_PLUGIN: &str = "envoy.grpc_credentials.file_based_metadata";

/// How Envoy speaks SDS.
#[derive(Clone, Debug)]
pub enum SdsTransport {
    /// Envoy's own gRPC client and `StreamSecrets`, Istio's choice.
    EnvoyGrpc,
    /// Envoy's own gRPC client and `DeltaSecrets`.
    EnvoyDeltaGrpc,
    /// Google's gRPC client, which sends the token in this file with each stream, as Istio 1.1 had it.
    GoogleGrpc {
        /// Path of the token, relative to Envoy's working directory.
        token_file: String,
    },
}

/// A mutual-TLS destination of an outbound listener.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The Host header that leads there; also the cluster's name.
    pub host: String,
    /// The peer's sidecar.
    pub address: SocketAddr,
    /// The SPIFFE ID that the peer must have.
    pub spiffe_id: String,
}

/// A configuration under construction.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    name: String,
    sds: SdsTransport,
    port: u16,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

impl Bootstrap {
    /// A configuration without listeners; `name` is the sidecar's.
    pub fn new(name: &str, sds: SdsTransport) -> Self {
        let clusters = match sds {
            SdsTransport::GoogleGrpc { .. } => Vec::new(),
            SdsTransport::EnvoyGrpc | SdsTransport::EnvoyDeltaGrpc => vec![sds_cluster()],
        };
        Self { name: name.to_owned(), sds, port: 0, listeners: Vec::new(), clusters }
    }

    /// Has the main listener listen on this loopback port, and not on one that the kernel chooses.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Adds the listener `inbound`: mutual TLS for the clients in `allowed`, and plain HTTP to `application`.
    #[must_use]
    pub fn inbound(mut self, application: SocketAddr, allowed: &[String]) -> Self {
        let tls = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": self.tls_context(allowed),
        });
        let routes = json!([{ "name": "application", "domains": ["*"], "routes": [to_cluster(APPLICATION)] }]);
        let mut chain = json!({ "filters": [http_filter("inbound", &routes)] });
        chain["transport_socket"] = json!({ "name": "envoy.transport_sockets.tls", "typed_config": tls });
        self.clusters.push(cluster(APPLICATION, &socket_address(application)));
        let listener = listener("inbound", self.port, &chain);
        self.listener(listener)
    }

    /// The same for an application that speaks gRPC, with streams that last.
    #[must_use]
    pub fn inbound_grpc(self, application: SocketAddr, allowed: &[String]) -> Self {
        let mut bootstrap = self.inbound(application, allowed);
        for cluster in bootstrap.clusters.iter_mut().filter(|cluster| cluster["name"] == APPLICATION) {
            cluster["typed_extension_protocol_options"] = http2();
        }
        if let Some(listener) = bootstrap.listeners.last_mut() {
            let filter = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
            filter["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"] = json!("0s");
        }
        bootstrap
    }

    /// Adds the listener `outbound`: plain HTTP in, mutual TLS to the upstream that the Host header names.
    #[must_use]
    pub fn outbound(mut self, upstreams: &[Upstream]) -> Self {
        let hosts = upstreams.iter().map(|upstream| {
            let host = &upstream.host;
            json!({ "name": host, "domains": [host], "routes": [to_cluster(host)] })
        });
        let chain = json!({ "filters": [http_filter("outbound", &hosts.collect())] });
        for upstream in upstreams {
            let cluster = self.upstream_cluster(upstream);
            self.clusters.push(cluster);
        }
        let listener = listener("outbound", self.port, &chain);
        self.listener(listener)
    }

    /// Adds a listener as it is.
    #[must_use]
    pub fn listener(mut self, listener: Value) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Adds a cluster as it is.
    #[must_use]
    pub fn cluster(mut self, cluster: Value) -> Self {
        self.clusters.push(cluster);
        self
    }

    /// The `common_tls_context` with the workload's certificate and a peer of one of these SPIFFE IDs.
    pub fn tls_context(&self, peers: &[String]) -> Value {
        let names = peers.iter().map(|peer| json!({ "san_type": "URI", "matcher": { "exact": peer } }));
        json!({
            "tls_certificate_sds_secret_configs": [{ "name": "default", "sds_config": sds_config(&self.sds) }],
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": names.collect::<Vec<_>>() },
                "validation_context_sds_secret_config": { "name": "ROOTCA", "sds_config": sds_config(&self.sds) },
            },
        })
    }

    /// The id under which a control plane knows this Envoy.
    pub fn node(&self) -> String {
        format!("sidecar~127.0.0.1~{}~cluster.local", self.name)
    }

    /// The finished configuration.
    pub fn build(&self) -> Value {
        json!({
            "node": { "id": self.node(), "cluster": self.name },
            "admin": { "address": { "pipe": { "path": ADMIN_SOCKET } } },
            "static_resources": { "listeners": self.listeners, "clusters": self.clusters },
        })
    }

    /// The finished configuration of an Envoy that asks a control plane for all its listeners and clusters but that of
    /// SDS, over mutual TLS with the workload's certificate; and what the control plane is to answer.
    pub fn build_discovered(&self, control_plane: &Upstream) -> (Value, Resources) {
        let (local, remote): (Vec<_>, Vec<_>) =
            self.clusters.iter().cloned().partition(|cluster| cluster["name"] == SDS_CLUSTER);
        let resources = Resources {
            listeners: self.listeners.iter().map(wire::listener).collect(),
            clusters: remote.iter().map(wire::cluster).collect(),
        };
        let control_plane = Upstream { host: XDS_CLUSTER.to_owned(), ..control_plane.clone() };
        let mut xds = self.upstream_cluster(&control_plane);
        xds["typed_extension_protocol_options"] = http2();
        let mut bootstrap = Self { listeners: Vec::new(), clusters: local, ..self.clone() }.cluster(xds).build();
        let ads = json!({ "ads": {}, "resource_api_version": "V3" });
        let service = json!({ "envoy_grpc": { "cluster_name": XDS_CLUSTER } });
        let source = json!({ "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service] });
        bootstrap["dynamic_resources"] = json!({ "ads_config": source, "lds_config": ads, "cds_config": ads });
        (bootstrap, resources)
    }

    /// Every request makes a connection and a full handshake of its own (no reuse, no resumption), so that each one
    /// proves the certificates of its moment.
    fn upstream_cluster(&self, upstream: &Upstream) -> Value {
        let mut tls = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": upstream.host,
            "max_session_keys": 0,
            "common_tls_context": self.tls_context(std::slice::from_ref(&upstream.spiffe_id)),
        });
        tls["common_tls_context"]["tls_params"] = upstream_tls_params();
        let mut cluster = cluster(&upstream.host, &socket_address(upstream.address));
        cluster["transport_socket"] = json!({ "name": "envoy.transport_sockets.tls", "typed_config": tls });
        cluster["typed_extension_protocol_options"] = protocol_options(&json!({
            "common_http_protocol_options": { "max_requests_per_connection": 1 },
            "explicit_http_config": { "http_protocol_options": {} },
        }));
        cluster
    }
}

/// What an Envoy needs as a client, where it speaks TLS 1.2 with X25519 and P-256 by default: the one version in which a
/// peer's key may lie on another curve, for older peers that curve, and the key exchange that its peer prefers.
pub fn upstream_tls_params() -> Value {
    json!({
        "tls_maximum_protocol_version": "TLSv1_3",
        "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256", "P-384"],
    })
}

/// The `sds_config` of one secret: wait for it for ever, and send the node once a stream.
pub fn sds_config(transport: &SdsTransport) -> Value {
    let (api_type, service) = match transport {
        SdsTransport::EnvoyGrpc => ("GRPC", envoy_grpc()),
        SdsTransport::EnvoyDeltaGrpc => ("DELTA_GRPC", envoy_grpc()),
        SdsTransport::GoogleGrpc { token_file } => ("GRPC", google_grpc(token_file)),
    };
    json!({
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": api_type,
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [service],
        },
    })
}

fn envoy_grpc() -> Value {
    json!({ "envoy_grpc": { "cluster_name": SDS_CLUSTER } })
}

/// Google's gRPC client, as it comes: its `:authority` for a Unix socket is the percent-encoded path.
fn google_grpc(token_file: &str) -> Value {
    let bearer = json!({
        "@type": "type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig",
        "secret_data": { "filename": token_file },
        "header_key": "authorization",
        "header_prefix": "Bearer ",
    });
    json!({ "google_grpc": {
        "target_uri": format!("unix:{SOCKET}"),
        "stat_prefix": "sds",
        "channel_credentials": { "local_credentials": {} },
        "credentials_factory_name": BEARER_PLUGIN,
        "call_credentials": [{ "from_plugin": { "name": BEARER_PLUGIN, "typed_config": bearer } }],
    } })
}

fn sds_cluster() -> Value {
    let mut sds = cluster(SDS_CLUSTER, &json!({ "pipe": { "path": SOCKET } }));
    sds["typed_extension_protocol_options"] = http2();
    sds
}

fn http2() -> Value {
    protocol_options(&json!({ "explicit_http_config": { "http2_protocol_options": {} } }))
}

fn cluster(name: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn protocol_options(options: &Value) -> Value {
    let mut options = options.clone();
    options["@type"] = json!("type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
    json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options })
}

/// A listener on a loopback port; the kernel chooses it in place of 0.
fn listener(name: &str, port: u16, chain: &Value) -> Value {
    json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [chain],
    })
}

fn http_filter(name: &str, virtual_hosts: &Value) -> Value {
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": { "name": name, "virtual_hosts": virtual_hosts },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        } }],
    } })
}

fn to_cluster(name: &str) -> Value {
    json!({ "match": { "prefix": "/" }, "route": { "cluster": name } })
}
