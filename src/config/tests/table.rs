//! The table of variables is what the parser does.

use super::*;

/// What is written as words says the same as what is used.
#[test]
fn the_table_has_the_defaults_that_are_used() {
    assert_eq!(variables::SDS_SHIM_ARENA_KIB.default, locked::ARENA_KIB.to_string());
    let [from, to] = [WINDOW.start, WINDOW.end].map(|share| share * 100.0);
    let said = format!("renew after {from} % to {to} % of the remaining life");
    assert_eq!(variables::SECRET_GRACE_PERIOD_RATIO.default, said);
    let config = config(&[]).unwrap();
    let address = config.ca.addresses[0].to_string();
    assert!(variables::CA_ADDR.default.ends_with(&format!(", else {address}")), "{address}");
    assert_eq!(CaRoots::File(variables::CA_ROOT_CA.default.into()), config.ca.roots);
    let audience = config.token.audience.unwrap();
    assert!(variables::SDS_SHIM_TOKEN_AUDIENCE.default.starts_with(&format!("{audience}; ")), "{audience}");
}

#[test]
fn every_choice_is_taken_and_nothing_else() {
    for variable in VARIABLES {
        let Kind::OneOf(choices) = &variable.kind else { continue };
        let expected = format!("{}: expected {}", variable.name, variable.kind);
        for choice in *choices {
            let mistakes = config(&[(variable.name, choice)]).err().unwrap_or_default();
            assert!(!mistakes.contains(&expected), "{choice}: {mistakes:?}");
        }
        assert_eq!(config(&[(variable.name, "other")]).unwrap_err(), [expected]);
    }
}

#[test]
fn the_limits_of_the_table_are_those_of_the_parser() {
    for variable in VARIABLES {
        let (taken, refused) = match &variable.kind {
            Kind::Number { least, most, multiple_of, .. } => (
                vec![least.to_string(), most.to_string()],
                [least - multiple_of, most + multiple_of]
                    .into_iter()
                    .chain((*multiple_of > 1).then_some(least + 1))
                    .map(|number| number.to_string())
                    .chain(["1e9".to_owned()])
                    .collect(),
            ),
            Kind::Ratio => (vec!["0".to_owned(), "1".to_owned()], vec!["-0.1".to_owned(), "1.1".to_owned()]),
            Kind::Duration { least: Duration::ZERO } => (vec!["0s".to_owned()], vec!["-1ns".to_owned()]),
            Kind::Duration { least } => {
                (vec![format!("{}ns", least.as_nanos())], vec![format!("{}ns", least.as_nanos() - 1)])
            }
            Kind::Words(_) | Kind::OneOf(_) | Kind::Boolean => continue,
        };
        for value in taken {
            assert!(config(&[(variable.name, &value)]).is_ok(), "{}={value}", variable.name);
        }
        for value in refused {
            assert!(config(&[(variable.name, &value)]).is_err(), "{}={value}", variable.name);
        }
    }
}

#[test]
fn a_default_that_is_set_changes_nothing() {
    // Whether these are set says more: that the file must be there, that every file is looked at, and that Istio's
    // schedule is wanted.
    const SAY_MORE: [&str; 3] = ["SDS_SHIM_CRL", "SDS_SHIM_FILE_CHECK", "SECRET_GRACE_PERIOD_RATIO_JITTER"];
    let unset = format!("{:?}", config(&[]).unwrap());
    let values = VARIABLES.iter().filter_map(|variable| Some((variable.name, variable.value?)));
    for (name, value) in values.filter(|(name, _)| !SAY_MORE.contains(name)) {
        assert_eq!(format!("{:?}", config(&[(name, value)]).unwrap()), unset, "{name}={value}");
    }
}
