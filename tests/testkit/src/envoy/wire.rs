//! Listeners and clusters as ADS carries them. The few outer messages are written field by field; what extensions are
//! configured with goes as JSON in a `TypedStruct`, which Envoy takes for each of them.

use prost::Message;
use sds_shim_proto::google::protobuf::{Any, ListValue, Struct, Value as Field, value::Kind};
use serde_json::Value;

/// Type of a listener.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type of a cluster.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const TYPED_STRUCT: &str = "type.googleapis.com/xds.type.v3.TypedStruct";

/// A listener as [`super::Bootstrap`] makes it.
pub fn listener(json: &Value) -> Any {
    let mut bytes = text(1, &json["name"]);
    bytes.extend(message(2, &address(&json["address"])));
    for chain in items(&json["filter_chains"]) {
        let mut inner = Vec::new();
        for filter in items(&chain["filters"]) {
            inner.extend(message(3, &extension(filter, 4)));
        }
        if chain["transport_socket"].is_object() {
            inner.extend(message(6, &extension(&chain["transport_socket"], 3)));
        }
        bytes.extend(message(3, &inner));
    }
    any(LISTENER, bytes)
}

/// A static cluster as [`super::Bootstrap`] makes it.
pub fn cluster(json: &Value) -> Any {
    let mut bytes = text(1, &json["name"]);
    // A connect timeout of one second.
    bytes.extend(message(4, &[0x08, 1]));
    if json["transport_socket"].is_object() {
        bytes.extend(message(24, &extension(&json["transport_socket"], 3)));
    }
    let mut assignment = text(1, &json["load_assignment"]["cluster_name"]);
    for locality in items(&json["load_assignment"]["endpoints"]) {
        for endpoint in items(&locality["lb_endpoints"]) {
            let endpoint = message(1, &address(&endpoint["endpoint"]["address"]));
            assignment.extend(message(2, &message(2, &message(1, &endpoint))));
        }
    }
    bytes.extend(message(33, &assignment));
    for (name, options) in json["typed_extension_protocol_options"].as_object().into_iter().flatten() {
        let mut entry = message(1, name.as_bytes());
        entry.extend(message(2, &typed(options).encode_to_vec()));
        bytes.extend(message(36, &entry));
    }
    any(CLUSTER, bytes)
}

/// An address of a socket.
fn address(json: &Value) -> Vec<u8> {
    let socket = &json["socket_address"];
    let mut bytes = text(2, &socket["address"]);
    prost::encoding::uint64::encode(3, &socket["port_value"].as_u64().unwrap_or_default(), &mut bytes);
    message(1, &bytes)
}

/// A name and a `typed_config`, which has this field number.
fn extension(json: &Value, number: u32) -> Vec<u8> {
    let mut bytes = text(1, &json["name"]);
    bytes.extend(message(number, &typed(&json["typed_config"]).encode_to_vec()));
    bytes
}

/// What has an `@type`, as a `TypedStruct`.
fn typed(json: &Value) -> Any {
    let mut fields = json.as_object().cloned().unwrap_or_default();
    let kind = fields.remove("@type").unwrap_or_default();
    let mut bytes = text(1, &kind);
    if let Some(Kind::StructValue(content)) = field(&Value::Object(fields)).kind {
        bytes.extend(message(2, &content.encode_to_vec()));
    }
    any(TYPED_STRUCT, bytes)
}

fn field(json: &Value) -> Field {
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(field).collect() }),
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(name, value)| (name.clone(), field(value))).collect(),
        }),
    };
    Field { kind: Some(kind) }
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value: value.into() }
}

fn items(json: &Value) -> impl Iterator<Item = &Value> {
    json.as_array().into_iter().flatten()
}

fn text(number: u32, json: &Value) -> Vec<u8> {
    message(number, json.as_str().unwrap_or_default().as_bytes())
}

/// A field with these bytes: a string, or a message.
fn message(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::bytes::encode(number, &content.to_vec(), &mut bytes);
    bytes
}
