mod ca;
mod content;
mod files;
mod incremental;
mod outage;
mod settings;
mod socket;
mod streams;

use std::pin::Pin;

use crate::subject::Implementation;

/// One rule, and how it is checked.
pub(crate) struct Rule {
    pub(crate) group: &'static str,
    pub(crate) text: &'static str,
    pub(crate) check: fn(Implementation) -> Pin<Box<dyn Future<Output = testkit::Result> + Send>>,
}

macro_rules! rules {
    ($($group:literal { $($text:literal => $check:path,)* })*) => {
        pub(crate) const RULES: &[Rule] = &[$($(
            Rule { group: $group, text: $text, check: |of| Box::pin($check(of)) },
        )*)*];
    };
}

rules! {
    "The socket" {
        "it is at the agreed path and answers SETTINGS before there is a certificate" => socket::answers_before_a_certificate,
        "its name follows WORKLOAD_IDENTITY_SOCKET_FILE" => socket::is_named_by_the_variable,
        "only its user may use it: the mode is 0600" => socket::is_for_its_user_alone,
        "a stale socket of a dead server is replaced" => socket::stale_one_is_replaced,
        "a file at its path that is not a socket is not deleted" => socket::spares_a_file,
        "sixteen connections are served side by side" => socket::bears_sixteen_connections,
        "garbage on a connection disturbs no other" => socket::survives_garbage,
        "a request of HTTP/1.1 disturbs no other connection" => socket::survives_http1,
        "a client that never reads disturbs no other" => socket::survives_a_client_that_never_reads,
        "a name of 60 kB disturbs no other stream" => socket::survives_a_long_name,
        "a hundred streams on one connection are served" => socket::bears_a_hundred_streams,
        "the socket is removed on shutdown" => socket::goes_away_at_the_end,
        "a successor's socket is kept on shutdown" => socket::leaves_a_successors_socket,
        "if it cannot listen it exits with the reason" => socket::ends_when_it_cannot_listen,
    }
    "StreamSecrets" {
        "the first request is answered whatever version and nonce it carries" => streams::first_request_is_answered,
        "the node may come with the first message only" => streams::node_comes_once,
        "a request without a node is answered" => streams::node_is_not_needed,
        "an empty type URL means secrets" => streams::empty_type_url_is_taken,
        "another type URL is an INVALID_ARGUMENT" => streams::other_type_url_is_refused,
        "an ACK is not answered" => streams::ack_is_not_answered,
        "a stale nonce is ignored" => streams::stale_nonce_is_ignored,
        "after a NACK nothing is sent until the content changes" => streams::nack_is_not_answered,
        "after a NACK the next content is sent" => streams::nack_is_followed_by_the_next_content,
        "changed names are honoured in an ACK" => streams::names_change_in_an_ack,
        "changed names are honoured in a NACK" => streams::names_change_in_a_nack,
        "a stream without any name stays open" => streams::no_name_stays_open,
        "a rotation is not sent after an unsubscribe" => streams::unsubscribed_gets_nothing,
        "a request for several names gets them all" => streams::several_names_are_answered,
        "a request for several names gets those held within a second" => streams::held_names_come_at_once,
        "an unknown name never gets the workload's key" => streams::unknown_name_gets_no_key,
        "the stream of an unknown name stays open" => streams::unknown_name_stays_open,
        "one content has one version on every stream" => streams::version_is_that_of_the_content,
        "each response has a nonce of its own" => streams::nonces_differ,
        "responses and resources have the type URL of secrets" => streams::type_urls_are_right,
        "before the first certificate a stream is open and silent" => streams::waits_for_the_first_certificate,
        "a stream that waited is answered once there is a certificate" => streams::is_answered_when_it_comes,
        "a rotation is pushed to every open stream" => streams::rotation_is_pushed,
        "the trust anchors are not sent again when only the certificate changed" => streams::unchanged_roots_are_not_sent,
    }
    "DeltaSecrets and FetchSecrets" {
        "DeltaSecrets answers with each resource and its version" => incremental::first_answer,
        "what a client has by initial_resource_versions is not sent again" => incremental::known_versions_are_not_sent,
        "what a client has in another version is sent" => incremental::other_versions_are_sent,
        "a later subscription is answered" => incremental::later_subscription,
        "an unsubscribed resource is sent no more" => incremental::unsubscribed,
        "a rotation is pushed with only what changed" => incremental::rotation,
        "after a NACK nothing is sent until the content changes (delta)" => incremental::nack,
        "FetchSecrets answers at once with what is held" => incremental::fetch,
        "FetchSecrets of an unknown name never brings a key" => incremental::fetch_unknown,
        "grpc.health.v1 says whether it serves" => incremental::health,
    }
    "What is served" {
        "`default` is a key with its chain, and nothing else" => content::default_is_a_certificate,
        "`ROOTCA` is trust anchors, and nothing else" => content::rootca_is_anchors,
        "the certificate carries the SPIFFE ID of the pod" => content::spiffe_id,
        "the key is ECDSA P-256 or better, or RSA of 2048 bits or more" => content::key_is_strong,
        "the chain leads from the leaf through its intermediates" => content::chain_is_in_order,
        "the chain contains no root" => content::chain_has_no_root,
        "each rotation has a fresh key" => content::fresh_key,
        "concatenated PEM from the CA is split" => content::glued_pem,
        "a root that appears twice is served once" => content::duplicate_roots,
        "all roots of the answer's last element are served" => content::several_roots,
        "a bad anchor among good ones is left out" => content::bad_anchor,
        "caCertificatesPem of PROXY_CONFIG are anchors too" => content::mesh_anchors,
    }
    "The call to the CA" {
        "the CSR carries the SPIFFE ID as its only SAN" => ca::csr_has_one_san,
        "the CSR's subject carries no name" => ca::csr_has_no_subject,
        "the token travels as a bearer in the metadata" => ca::token_is_a_bearer,
        "the metadata says ClusterID" => ca::cluster_id,
        "CA_HEADER_ variables become metadata" => ca::headers,
        "ISTIO_META_CERT_SIGNER is sent as CertSigner" => ca::cert_signer,
        "SECRET_TTL is the requested lifetime" => ca::lifetime,
        "the token is re-read for each call" => ca::fresh_token,
        "its own certificate is presented once held" => ca::own_certificate,
        "an expired token is not sent to the CA" => ca::expired_token,
        "with a missing token the CA is not called" => ca::missing_token,
        "a call that hangs is aborted" => ca::hanging_call,
        "the CA's root file is re-read after a change" => ca::root_file,
        "discoveryAddress of PROXY_CONFIG is the CA's address when none is set" => ca::discovery_address,
        "reconnecting clients cause no calls" => ca::reconnects,
        "twenty streams cause one call" => ca::many_streams,
    }
    "Bad answers and outages" {
        "a certificate for another key is not served" => outage::other_key,
        "a certificate for another SPIFFE ID is not served" => outage::other_identity,
        "a CA certificate is not served" => outage::ca_certificate,
        "a certificate under an unrelated root is not served" => outage::unrelated_root,
        "an expired certificate is not served" => outage::expired,
        "a chain of one element is not served" => outage::one_element,
        "the old certificate is served to new streams while the CA is down" => outage::default_stays,
        "the trust anchors are served to new streams while the CA is down" => outage::roots_stay,
        "open streams stay open while the CA is down" => outage::streams_stay,
        "reconnecting clients cause no calls while the CA is down" => outage::reconnects,
        "retries within one renewal use the same key" => outage::same_key,
        "when the CA is back the next certificate is pushed" => outage::recovery,
        "a failed first certificate is retried without a client" => outage::first_certificate,
    }
    "Files" {
        "file-cert: names a chain and a key" => files::certificate,
        "file-root: names trust anchors" => files::roots,
        "file-root:system names the operating system's anchors" => files::system_roots,
        "a changed pair is pushed" => files::rotation,
        "a key and a chain of two generations are never served" => files::mismatch,
        "a missing file is waited for with an open stream" => files::missing,
        "a swap of kubelet's ..data link is seen" => files::kubelet,
        "OUTPUT_CERTS is written without a subscriber" => files::output,
        "OUTPUT_CERTS' key is not world-readable" => files::output_mode,
        "OUTPUT_CERTS is renewed without a subscriber" => files::output_renewed,
    }
    "Settings" {
        "ECC_SIGNATURE_ALGORITHM=ECDSA makes P-256 keys" => settings::ecdsa,
        "ECC_CURVE=P384 makes P-384 keys" => settings::p384,
        "WORKLOAD_RSA_KEY_SIZE makes RSA keys of its size" => settings::rsa,
        "PKCS8_KEY=true writes PKCS#8" => settings::pkcs8,
        "an invalid duration prevents the start" => settings::bad_duration,
        "TRUST_DOMAIN is that of the SPIFFE ID" => settings::trust_domain,
    }
}
