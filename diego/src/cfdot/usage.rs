//! How `cfdot` is asked, and what it says to whoever asks otherwise: in the words and under the exit codes that scripts
//! know, whatever our parser would say itself.

use std::error::Error as _;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

use super::failure::{UNKNOWN, USAGE};
use super::{Failure, NAME};

const ALL_COMMANDS: &str = "\
{about}

Usage:
  {usage}

Available Commands:
{subcommands}

Flags:
{options}

";
const ONE_COMMAND: &str = "\
{about}

Usage:
  {usage}

Flags:
{options}

";
/// Commands that refuse one short flag together with its long twin.
const TWINS: [(&str, &[(&str, &str)]); 6] = [
    ("desired-lrps", &[("-d", "--domain")]),
    ("desired-lrp-scheduling-infos", &[("-d", "--domain")]),
    ("tasks", &[("-d", "--domain"), ("-c", "--cell-id")]),
    ("claim-lock", CLAIM),
    ("claim-presence", CLAIM),
    ("release-lock", &[("-k", "--key"), ("-o", "--owner")]),
];
const CLAIM: &[(&str, &str)] = &[("-k", "--key"), ("-o", "--owner"), ("-v", "--value"), ("-t", "--ttl")];

/// Commands that go some day, and what is to be used instead.
const DEPRECATED: [(&str, &str); 2] = [
    ("actual-lrp-groups", "use \"actual-lrps\" instead."),
    ("actual-lrp-groups-for-guid", "use \"actual-lrps\" with the \"--process-guid\" flag instead."),
];

/// The whole command line with `cfdot` in it as it is known: its help, its order, and that the last of several same
/// flags counts.
pub fn shaped(cli: Command) -> Command {
    cli.mut_subcommand(NAME, |cfdot| {
        cfdot
            .override_usage("cfdot [flags]\n  cfdot [command]")
            .help_template(ALL_COMMANDS)
            .args_override_self(true)
            .mut_args(in_order)
            .mut_subcommands(|command| {
                let (usage, rank) = (format!("cfdot {}", asked_as(&command)), rank(command.get_name()));
                command
                    .override_usage(usage)
                    .help_template(ONE_COMMAND)
                    .args_override_self(true)
                    .mut_args(in_order)
                    .display_order(rank)
            })
    })
}

/// `task TASK_GUID [flags]`
fn asked_as(command: &Command) -> String {
    let mut words = vec![command.get_name().to_owned()];
    let names = command.get_positionals().filter_map(Arg::get_value_names).flatten();
    words.extend(names.map(|name| if name.contains('|') { format!("({name})") } else { name.to_string() }));
    words.push("[flags]".into());
    words.join(" ")
}

fn in_order(argument: Arg) -> Arg {
    let rank = argument.get_long().map(rank);
    argument.display_order(rank.unwrap_or_default())
}

/// By the alphabet, as far as it matters.
fn rank(name: &str) -> usize {
    let letters = name.bytes().chain(std::iter::repeat(0));
    letters.take(size_of::<usize>()).fold(0, |rank, letter| rank << 8 | usize::from(letter))
}

/// Said whatever becomes of the command.
pub fn warn(arguments: &[String]) {
    let deprecated = DEPRECATED.iter().find(|(command, _)| arguments.iter().any(|told| told == command));
    if let Some((command, instead)) = deprecated {
        eprintln!("Command {command:?} is deprecated, {instead}");
    }
}

/// Refuses what the parser lets pass.
pub fn check(arguments: &[String]) -> Result<(), Failure> {
    let has = |told: &str| arguments.iter().any(|argument| argument == told);
    let twins = TWINS.iter().filter(|(command, _)| has(command)).flat_map(|(_, twins)| *twins);
    match twins.into_iter().find(|(short, long)| has(short) && has(long)) {
        Some((short, long)) => {
            Err(Failure::Usage(format!("Only one of {short} and {long} should be passed")))
        }
        None => Ok(()),
    }
}

/// The help of one command, or of `help` itself.
pub fn help(mut cli: Command, name: Option<&str>) -> Result<String, Failure> {
    cli.build();
    let name = name.filter(|name| !name.is_empty()).unwrap_or("help");
    let command = cli.find_subcommand_mut(NAME).and_then(|cfdot| cfdot.find_subcommand_mut(name));
    let command = command.ok_or_else(|| Failure::Usage(format!("'{name}' is not a valid command")))?;
    Ok(command.render_help().to_string())
}

/// The command that was asked for, and how it is asked.
pub fn usage(cli: &Command, arguments: &[String]) -> String {
    let asked = asked(cli, arguments).map_or_else(|| "[command]".into(), asked_as);
    format!("Usage:\n  cfdot {asked}\n")
}

fn asked<'a>(cli: &'a Command, arguments: &[String]) -> Option<&'a Command> {
    let cfdot = cli.find_subcommand(NAME)?;
    arguments.iter().find_map(|name| cfdot.find_subcommand(name))
}

/// What was asked wrongly, and how it is asked. Whoever asks nothing gets help.
pub fn misused(cli: &Command, arguments: &[OsString], error: &clap::Error) -> ExitCode {
    let arguments: Vec<String> = arguments.iter().skip(2).map(|one| one.to_string_lossy().into()).collect();
    if arguments.is_empty() {
        print!("{}", error.render());
        return ExitCode::SUCCESS;
    }
    warn(&arguments);
    let (why, code) = words(error, asked(cli, &arguments));
    eprintln!("Error: {why}\n{}", usage(cli, &arguments));
    ExitCode::from(code)
}

fn words(error: &clap::Error, asked: Option<&Command>) -> (String, u8) {
    let told = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (argument, value) = (told(ContextKind::InvalidArg), told(ContextKind::InvalidValue));
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default();
    let named = with_short(flag, asked);
    let why = error.source().map_or_else(|| "invalid syntax".to_owned(), ToString::to_string);
    match error.kind() {
        ErrorKind::MissingRequiredArgument => (missing(asked).into(), USAGE),
        ErrorKind::UnknownArgument => unknown(argument, asked),
        ErrorKind::InvalidSubcommand => {
            let told = told(ContextKind::InvalidSubcommand);
            (format!("unknown command {told:?} for {NAME:?}"), UNKNOWN)
        }
        ErrorKind::InvalidValue if value.is_empty() => (format!("flag needs an argument: {flag}"), UNKNOWN),
        _ if argument.starts_with('<') => (why, USAGE),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            (format!("invalid argument {value:?} for {named:?} flag: {why}"), USAGE)
        }
        ErrorKind::MissingSubcommand => ("no command is given".into(), UNKNOWN),
        _ => (error.to_string().lines().next().unwrap_or_default().into(), USAGE),
    }
}

/// `-t, --ttl`
fn with_short(flag: &str, asked: Option<&Command>) -> String {
    let mut arguments = asked.into_iter().flat_map(Command::get_arguments);
    let argument = arguments.find(|argument| argument.get_long() == flag.strip_prefix("--"));
    match argument.and_then(Arg::get_short) {
        Some(short) => format!("-{short}, {flag}"),
        None => flag.to_owned(),
    }
}

fn missing(asked: Option<&Command>) -> &'static str {
    match asked.map(Command::get_name) {
        Some("create-desired-lrp" | "create-task") => "missing spec argument",
        _ => "Missing arguments",
    }
}

fn unknown(argument: &str, asked: Option<&Command>) -> (String, u8) {
    let mut letters = argument.chars();
    match (letters.next(), letters.next()) {
        (Some('-'), Some('-')) => (format!("unknown flag: {argument}"), UNKNOWN),
        (Some('-'), Some(letter)) => (format!("unknown shorthand flag: {letter:?} in {argument}"), UNKNOWN),
        _ => {
            let name = asked.map(Command::get_name);
            let takes_a_spec =
                name.is_some_and(|name| name.starts_with("create-") || name.starts_with("update-"));
            let why = if takes_a_spec { missing(asked) } else { "Too many arguments specified" };
            (why.into(), USAGE)
        }
    }
}

pub fn process_guid(text: &str) -> Result<String, &'static str> {
    given(text, "Process guid should be non empty string")
}

pub fn task_guid(text: &str) -> Result<String, &'static str> {
    given(text, "Missing arguments")
}

pub fn given(text: &str, otherwise: &'static str) -> Result<String, &'static str> {
    if text.is_empty() { Err(otherwise) } else { Ok(text.to_owned()) }
}

pub fn index(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "Index must be a non-negative integer")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn cli() -> Command {
        shaped(crate::cli::Cli::command())
    }

    fn refused(line: &[&str]) -> (String, u8) {
        let arguments = ["diego", NAME].iter().chain(line);
        let error = cli().try_get_matches_from(arguments).unwrap_err();
        let told: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        words(&error, asked(&cli(), &told))
    }

    #[test]
    fn what_is_asked_wrongly_is_said_in_known_words() {
        for (line, expected, code) in [
            (&["cell"] as &[&str], "Missing arguments", 3),
            (&["cell", "a", "b"], "Too many arguments specified", 3),
            (&["cells", ""], "Too many arguments specified", 3),
            (&["create-task"], "missing spec argument", 3),
            (&["create-task", "{}", "x"], "missing spec argument", 3),
            (&["update-desired-lrp", "p", "{}", "x"], "Missing arguments", 3),
            (&["desired-lrp", ""], "Process guid should be non empty string", 3),
            (&["task", ""], "Missing arguments", 3),
            (&["set-domain", ""], "No domain given", 3),
            (&["retire-actual-lrp", "p", "x"], "Index must be a non-negative integer", 3),
            (&["retire-actual-lrp", "p", "-1"], "unknown shorthand flag: '1' in -1", 255),
            (&["cells", "--nonsense"], "unknown flag: --nonsense", 255),
            (&["nonsense"], "unknown command \"nonsense\" for \"cfdot\"", 255),
            (&["tasks", "--domain"], "flag needs an argument: --domain", 255),
            (
                &["set-domain", "d", "-t", "soon"],
                "invalid argument \"soon\" for \"-t, --ttl\" flag: time: invalid duration \"soon\"",
                3,
            ),
            (
                &["claim-lock", "-t", "x"],
                "invalid argument \"x\" for \"-t, --ttl\" flag: invalid digit found in string",
                3,
            ),
        ] {
            assert_eq!(refused(line), (expected.to_owned(), code), "{line:?}");
        }
    }

    #[test]
    fn the_last_of_several_same_flags_counts_but_not_of_twins() {
        let line = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for told in ["tasks -d a -d b", "--bbsURL https://a --bbsURL https://b cells"] {
            cli().try_get_matches_from([line("diego cfdot"), line(told)].concat()).unwrap();
            assert!(check(&line(told)).is_ok(), "{told}");
        }
        let error = check(&line("tasks -d a --domain b")).unwrap_err();
        assert_eq!(error.to_string(), "Only one of -d and --domain should be passed");
        assert!(check(&line("actual-lrps -d a --domain b")).is_ok());
    }

    #[test]
    fn help_is_in_the_order_of_the_alphabet() {
        let help = help(cli(), Some("set-domain")).unwrap();
        let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text} is not in {help}"));
        let order = ["cfdot set-domain DOMAIN [flags]", "--bbsURL", "--caCertFile", "--timeout", "-t, --ttl"];
        assert!(order.is_sorted_by_key(|text| at(text)), "{help}");
        assert_eq!(
            usage(&cli(), &["create-task".into()]),
            "Usage:\n  cfdot create-task (SPEC|@FILE) [flags]\n"
        );
    }
}
