//! The man page and the completions of shells are written from the binary's own help and table of variables, and from
//! the manual's exit codes: `make manual`.

use std::{env, ffi::OsString, fmt::Write as _, fs, process::Command as Process};

use sds_shim::{
    cli::{self, Command},
    config::VARIABLES,
};
use testkit::workspace;

use crate::document::Document;

const PAGE: &str = "packaging/man/sds-shim.1";
const BASH: &str = "packaging/completions/sds-shim.bash";
const ZSH: &str = "packaging/completions/sds-shim.zsh";
const FISH: &str = "packaging/completions/sds-shim.fish";

/// A command as `sds-shim help` has it.
struct Told {
    name: String,
    /// What follows the name on the command line.
    arguments: String,
    text: String,
}

impl Told {
    fn options(&self) -> Vec<&str> {
        let words = self.arguments.split(['[', ']', '|', ' ']);
        words.filter(|word| word.starts_with("--") && word.len() > 2).collect()
    }

    /// The first part of what it does, for a list.
    fn short(&self) -> &str {
        self.text.split([':', ';', ',']).next().unwrap_or_default()
    }
}

fn help() -> String {
    match cli::parse(vec![OsString::from("help")]) {
        Ok(Command::Print(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn commands() -> Vec<Told> {
    let mut commands = Vec::<Told>::new();
    for line in help().lines().filter(|line| line.starts_with("  ")) {
        if let (Some(last), true) = (commands.last_mut(), line.starts_with("    ")) {
            last.text = format!("{} {}", last.text, line.trim()).trim().to_owned();
            continue;
        }
        let (head, text) = line.trim().split_once("  ").unwrap_or((line.trim(), ""));
        let (name, arguments) = head.split_once(' ').unwrap_or((head, ""));
        commands.push(Told { name: name.to_owned(), arguments: arguments.to_owned(), text: text.trim().to_owned() });
    }
    commands
}

/// Text that roff leaves as it is.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Codes and when they come, from the manual's table.
fn exit_codes() -> Vec<(String, String)> {
    let page = Document::read("src/manual/reference/commands.md").text;
    let rows = page.lines().skip_while(|line| *line != "| code | when |").skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        (cells[0].to_owned(), cells[1].to_owned())
    });
    rows.collect()
}

fn page() -> String {
    let help = help();
    let mut text = format!(
        ".\\\" Written by `make manual`.\n.TH SDS\\-SHIM 1 \"\" \"sds\\-shim {}\" \"User Commands\"\n.SH NAME\n\
         sds\\-shim \\- identity of an Envoy sidecar, served over SDS\n.SH SYNOPSIS\n.B sds\\-shim\n[\\fICOMMAND\\fR]\n\
         .SH DESCRIPTION\n{}\n",
        env!("CARGO_PKG_VERSION"),
        roff(help.lines().next().unwrap_or_default())
    );
    for line in help.lines().skip_while(|line| !line.starts_with("Everything")) {
        let _ = writeln!(text, ".PP\n{}", roff(line));
    }
    text.push_str(".SH COMMANDS\n");
    for command in commands() {
        let arguments = if command.arguments.is_empty() { String::new() } else { format!(" {}", command.arguments) };
        let _ = writeln!(text, ".TP\n\\fB{}\\fR{}\n{}", command.name, roff(&arguments), roff(&command.text));
    }
    text.push_str(".SH ENVIRONMENT\n");
    for variable in VARIABLES {
        let (kind, default) = (roff(&variable.kind.to_string()), roff(variable.default));
        let _ = writeln!(text, ".TP\n\\fB{}\\fR ({kind}; default: {default})\n{}", variable.name, roff(variable.help));
    }
    text.push_str(
        ".SH EXIT STATUS\nFor serve and exec. Once its program runs, exec exits with the program's own status.\n",
    );
    for (code, when) in exit_codes() {
        let _ = writeln!(text, ".TP\n{code}\n{}", roff(&when));
    }
    text + ".SH SEE ALSO\n.BR systemd.exec (5)\n"
}

const WRITTEN: &str = "# Written by `make manual` from `sds-shim help`.\n";

fn names(commands: &[Told]) -> String {
    commands.iter().map(|command| command.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// For each command that takes options: its name and they.
fn optional(commands: &[Told]) -> impl Iterator<Item = (&str, Vec<&str>)> {
    let all = commands.iter().map(|command| (command.name.as_str(), command.options()));
    all.filter(|(_, options)| !options.is_empty())
}

fn bash() -> String {
    let commands = commands();
    let mut text = format!(
        "# shellcheck shell=bash\n{WRITTEN}_sds_shim() {{\n    local current=${{COMP_WORDS[COMP_CWORD]}} words=\n    \
         if [ \"$COMP_CWORD\" -eq 1 ]; then\n        words='{}'\n    else\n        case ${{COMP_WORDS[1]}} in\n",
        names(&commands)
    );
    for (name, options) in optional(&commands) {
        let _ = writeln!(text, "            {name}) words='{}' ;;", options.join(" "));
    }
    text + "            get) words='default ROOTCA' ;;
            exec)
                local at=2
                [ \"${COMP_WORDS[2]}\" != -- ] || at=3
                if declare -F _command_offset >/dev/null; then
                    _command_offset \"$at\"
                else
                    mapfile -t COMPREPLY < <(compgen -c -- \"$current\")
                fi
                return
                ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")
}
complete -F _sds_shim sds-shim
"
}

fn zsh() -> String {
    let commands = commands();
    let mut text = format!("#compdef sds-shim\n{WRITTEN}local -a commands\ncommands=(\n");
    for command in &commands {
        let _ = writeln!(text, "    '{}:{}'", command.name, command.short().replace('\'', "'\\''"));
    }
    text.push_str(
        ")\nif (( CURRENT == 2 )); then\n    _describe command commands\n    return\nfi\ncase $words[2] in\n",
    );
    for (name, options) in optional(&commands) {
        let _ = writeln!(text, "    {name}) compadd -- {} ;;", options.join(" "));
    }
    text + "    get) compadd -- default ROOTCA ;;
    exec)
        shift words
        (( CURRENT-- ))
        if [[ $words[2] == -- ]] && (( CURRENT > 2 )); then
            shift words
            (( CURRENT-- ))
        fi
        shift words
        (( CURRENT-- ))
        _normal
        ;;
esac
"
}

fn fish() -> String {
    let commands = commands();
    let mut text = format!("{WRITTEN}complete -c sds-shim -f\n");
    for command in &commands {
        let short = command.short().replace('\'', "\\'");
        let _ = writeln!(text, "complete -c sds-shim -n __fish_use_subcommand -a {} -d '{short}'", command.name);
    }
    for (name, options) in optional(&commands) {
        let options = options.iter().map(|option| format!(" -l {}", option.trim_start_matches("--")));
        for option in options {
            let _ = writeln!(text, "complete -c sds-shim -n '__fish_seen_subcommand_from {name}'{option}");
        }
    }
    text + "complete -c sds-shim -n '__fish_seen_subcommand_from get' -a 'default ROOTCA'
complete -c sds-shim -n '__fish_seen_subcommand_from exec' -a '(__fish_complete_subcommand --fcs-skip=2)'
"
}

#[test]
fn the_man_page_and_the_completions_are_those_of_the_binary() {
    for (path, text) in [(PAGE, page()), (BASH, bash()), (ZSH, zsh()), (FISH, fish())] {
        if env::var_os("MANUAL").is_some() {
            // Other tests have a shell read it meanwhile.
            let (file, new) = (workspace().join(path), workspace().join(format!("{path}.new")));
            fs::write(&new, &text).and_then(|()| fs::rename(&new, &file)).expect("it can be written");
        }
        let written = fs::read_to_string(workspace().join(path)).expect("it is there");
        assert!(written == text, "{path} is not what the binary says of itself: run `make manual`");
    }
}

#[test]
fn the_man_page_has_every_command_variable_and_code() {
    let (page, commands) = (page(), commands());
    assert_eq!(names(&commands), "serve exec status health wait renew get check env version help");
    for name in commands.iter().map(|command| command.name.as_str()).chain(VARIABLES.iter().map(|one| one.name)) {
        assert!(page.contains(&format!("\\fB{name}\\fR")), "{name} is missing");
    }
    assert!(exit_codes().len() >= 5, "{:?}", exit_codes());
}

/// What bash proposes for the last of these words.
fn proposed(words: &[&str]) -> String {
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let script = format!(
        "source {BASH}; COMP_WORDS=({line}); COMP_CWORD={}; _sds_shim; echo \"${{COMPREPLY[*]}}\"",
        words.len() - 1
    );
    let ran = Process::new("bash").args(["--norc", "-euc", &script]).current_dir(workspace()).output();
    let ran = ran.expect("bash runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

#[test]
fn bash_completes_commands_options_and_names() {
    assert_eq!(proposed(&["sds-shim", "re"]), "renew");
    assert_eq!(proposed(&["sds-shim", "status", "--t"]), "--table");
    assert_eq!(proposed(&["sds-shim", "wait", ""]), "--timeout");
    assert_eq!(proposed(&["sds-shim", "get", "R"]), "ROOTCA");
    assert!(proposed(&["sds-shim", "exec", "--", "dirnam"]).contains("dirname"));
    assert_eq!(proposed(&["sds-shim", "renew", ""]), "");
}
