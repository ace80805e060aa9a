//! `rrqctl completions` and `rrqctl man`: what is made from the definition of the commands.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::terminal::{count, print, say};
use clap::{Command, ValueEnum};
use clap_complete::Shell;
use std::path::{Path, PathBuf};
use std::{fs, io};

pub(super) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  rrqctl completions bash > /etc/bash_completion.d/rrqctl
  rrqctl completions zsh > ~/.zfunc/_rrqctl
  rrqctl completions fish > ~/.config/fish/completions/rrqctl.fish";

pub(super) const MAN_EXAMPLES: &str = "\
Examples:
  rrqctl man --dir ./man          one page a command, then: man -l man/rrqctl.1
  rrqctl man --dir /usr/local/share/man/man1";

#[derive(clap::Args, Debug)]
pub(super) struct CompletionsArgs {
    /// For which shell.
    #[arg(value_name = "SHELL")]
    shell: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// GNU bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// fish.
    Fish,
}

#[derive(clap::Args, Debug)]
pub(super) struct ManArgs {
    /// Write the pages into this folder; it is made if it is not there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Prints the completions of a shell.
pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), Report> {
    let shell = match args.shell {
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "rrqctl", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the manual: a page for each command of each program.
pub(super) fn man(args: &ManArgs, programs: Vec<Command>) -> Result<(), Report> {
    let wrong = |path: &Path, error: &io::Error| {
        Report::error(
            Code::BadArgument,
            format!("cannot write {}", path.display()),
        )
        .location(error.to_string())
        .fix("--dir with a folder that this user may write")
    };
    fs::create_dir_all(&args.dir).map_err(|error| wrong(&args.dir, &error))?;
    let mut written = 0;
    for mut program in programs {
        program.build();
        let mut pages = Vec::new();
        collect(program, &mut pages);
        for page in pages {
            let name = page.get_display_name().unwrap_or(page.get_name());
            let path = args.dir.join(format!("{name}.1"));
            let mut roff = Vec::new();
            clap_mangen::Man::new(page)
                .render(&mut roff)
                .and_then(|()| fs::write(&path, &roff))
                .map_err(|error| wrong(&path, &error))?;
            written += 1;
        }
    }
    say(&format!(
        "{} written to {}",
        count(written, "page"),
        args.dir.display()
    ))
}

/// A command and all below it; `help` is told by each page already.
fn collect(command: Command, pages: &mut Vec<Command>) {
    let below = command.get_subcommands().cloned();
    let below: Vec<Command> = below
        .filter(|command| command.get_name() != "help")
        .collect();
    if !command.is_hide_set() {
        pages.push(command);
        below
            .into_iter()
            .for_each(|command| collect(command, pages));
    }
}
