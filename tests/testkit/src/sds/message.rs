//! Requests as Envoy writes them; tests change single fields of them.

use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    },
    google::rpc::Status,
};
use tonic::Code;

/// The first request of a stream: the names, the type URL and the node.
pub fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(node()),
        resource_names: owned(names),
        type_url: SECRET_TYPE_URL.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// Accepts `answer`, still asking for `names`; without the node, as Istio's bootstrap has Envoy do it.
pub fn ack(answer: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: answer.version_info.clone(),
        resource_names: owned(names),
        type_url: SECRET_TYPE_URL.to_owned(),
        response_nonce: answer.nonce.clone(),
        ..DiscoveryRequest::default()
    }
}

/// Refuses `answer`, staying at `version` (empty when nothing was ever accepted).
pub fn nack(answer: &DiscoveryResponse, version: &str, names: &[&str], reason: &str) -> DiscoveryRequest {
    DiscoveryRequest { version_info: version.to_owned(), error_detail: Some(refusal(reason)), ..ack(answer, names) }
}

/// An incremental request that subscribes to and unsubscribes from names, with the node.
pub fn delta_request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: SECRET_TYPE_URL.to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Accepts an incremental answer.
pub fn delta_ack(answer: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: SECRET_TYPE_URL.to_owned(),
        response_nonce: answer.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Refuses an incremental answer.
pub fn delta_nack(answer: &DeltaDiscoveryResponse, reason: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { error_detail: Some(refusal(reason)), ..delta_ack(answer) }
}

fn node() -> Node {
    Node { id: "sidecar~127.0.0.1~testkit~cluster.local".to_owned(), cluster: "testkit".to_owned() }
}

fn refusal(reason: &str) -> Status {
    Status { code: Code::InvalidArgument as i32, message: reason.to_owned() }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
