//! The same cases for the development CA and for Istio's own: what the shim gets along with in the one it has to get
//! along with in the other, and where the two differ, a table says how.

mod credentials;
mod identity;
mod istio_only;
mod outages;
mod upstream;
mod wire;

use upstream::Kind;

/// Runs each case as two tests, named after the CA.
macro_rules! both {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod development {
            use super::*;
            $(#[tokio::test] async fn $case() -> testkit::Result { $module::$case(Kind::Development).await })*
        }
        mod istio {
            use super::*;
            $(#[tokio::test] async fn $case() -> testkit::Result { $module::$case(Kind::Istio).await })*
        }
    };
}

both! {
    identity::the_first_certificate_is_served_with_its_chain_and_roots,
    identity::every_kind_of_key_is_certified,
    identity::istios_defaults_are_certified,
    identity::the_trust_domain_is_the_cas,
    identity::several_roots_in_the_last_element_are_all_served,
    identity::a_longer_chain_is_served_and_presented,
    identity::the_lifetime_asked_for_is_followed,
    identity::too_long_a_lifetime_is_refused_and_told,
    identity::a_signer_by_name_changes_nothing_else,
    credentials::renewals_present_our_own_certificate_beside_the_token,
    credentials::without_a_token_the_certificate_speaks_alone,
    credentials::with_an_expired_token_the_certificate_speaks_alone,
    credentials::an_expired_token_is_named_before_the_ca_is_asked,
    credentials::a_refused_audience_is_explained_from_the_token,
    credentials::a_refused_issuer_is_explained_and_a_good_token_used_at_once,
    credentials::tokens_with_either_signature_are_accepted,
    credentials::a_provisioned_certificate_is_enough_for_the_first_call,
    credentials::a_provisioned_certificate_of_another_ca_falls_back_to_the_token,
    outages::the_ca_goes_away_and_comes_back,
    outages::a_ca_with_another_root_gets_the_token_alone,
    outages::a_server_with_another_root_or_name_is_not_trusted,
    wire::answers_are_alike,
}
