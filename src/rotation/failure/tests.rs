use super::*;
use crate::config::ServerName;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn each_failure_hangs_on_what_could_cure_it() {
    let none = Hangs::default();
    let way = Hangs { way: true, ..none };
    let tls = CaError::Tls { address: "ca:1".to_owned(), cause: String::new() };
    let status = |code| CaError::Status { code, message: String::new(), retry_after: None };
    for (error, expected) in [
        (unreached(), way),
        (CaError::Deadline(SECOND, false), none),
        (status(Code::ResourceExhausted), none),
        (status(Code::Unavailable), way),
        (status(Code::Unauthenticated), Hangs { provisioned: true, clock: true, ..way }),
        (tls, Hangs { anchors: true, clock: true, ..way }),
        (CaError::Provisioned(String::new()), Hangs { provisioned: true, clock: true, ..way }),
        (CaError::Transport("unexpected eof while reading".to_owned()), Hangs { provisioned: true, ..way }),
    ] {
        assert_eq!(hangs(&error), expected, "{error}");
    }
}

fn unreached() -> CaError {
    CaError::Unreached { address: String::new(), limit: SECOND }
}

fn refusal(code: Code, seconds: Option<u64>) -> CaError {
    CaError::Status { code, message: String::new(), retry_after: seconds.map(Duration::from_secs) }
}

fn away() -> AttemptError {
    CaError::Connect { address: String::new(), cause: std::io::ErrorKind::ConnectionRefused.into() }.into()
}

#[test]
fn of_several_addresses_the_least_strained_and_the_least_patient_counts() {
    let address = CaAddress { host: String::new(), port: 1, server_name: ServerName::Dns(String::new()) };
    let everywhere = |errors: Vec<AttemptError>| {
        AttemptError::Everywhere(errors.into_iter().map(|error| (address.clone(), error)).collect()).class()
    };
    let nobody = everywhere(vec![away(), away()]);
    assert_eq!(nobody.setback(), Setback::Failed { strain: Strain::Away, asked: None });
    assert!(!nobody.reached());
    let busy = |seconds| refusal(Code::ResourceExhausted, seconds).into();
    assert_eq!(everywhere(vec![away(), busy(Some(5))]).setback(), {
        Setback::Failed { strain: Strain::None, asked: None }
    });
    assert_eq!(everywhere(vec![busy(Some(7)), busy(Some(5))]).setback(), {
        Setback::Failed { strain: Strain::Overload, asked: Some(Duration::from_secs(5)) }
    });
    let one = everywhere(vec![away(), refusal(Code::PermissionDenied, None).into()]);
    assert!(one.is_refusal && one.may_be_for_the_name && one.concerns_token() && !one.needs_token && one.reached());
    assert_eq!(one.reason, Reason::Connect);
}

#[test]
fn without_a_token_a_refusal_of_the_certificate_waits_for_one() {
    let token = || TokenError::Empty;
    let alone = |ca| AttemptError::CertificateAlone { token: token(), ca }.class();
    let refused = alone(refusal(Code::Unauthenticated, None));
    assert_eq!((refused.setback(), refused.reason), (Setback::Token, Reason::Token));
    assert!(refused.token_is_final(true) && !refused.reached());
    let down = alone(unreached());
    assert_eq!(down.setback(), Setback::Failed { strain: Strain::Late, asked: None });
    assert!(down.hangs.clock && !down.concerns_token());
}

#[test]
fn the_current_certificate_is_renewed_in_time_whatever_its_successor_does() {
    let both = |wanted: AttemptError, before: AttemptError| {
        Failure::Both { wanted: Box::new(wanted.into()), before: Box::new(before.into()) }.class()
    };
    let refused = || refusal(Code::Unauthenticated, None).into();
    let class = both(refused(), away());
    assert_eq!(class.setback(), Setback::Failed { strain: Strain::Away, asked: None });
    assert!(class.concerns_token() && !class.needs_token && !class.is_refusal && !class.may_be_for_the_name);
    let class = both(away(), TokenError::Empty.into());
    assert_eq!((class.setback(), class.needs_token), (Setback::Token, false));
}
