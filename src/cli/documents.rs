//! `understudy completions` and `understudy man`: made of the same definitions as the command line itself.

use std::{fs, path::PathBuf};

use clap::CommandFactory;
use clap_complete::shells;

use super::{Failure, say};

/// For which shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  understudy completions bash >/usr/share/bash-completion/completions/understudy
  understudy completions zsh >/usr/share/zsh/vendor-completions/_understudy
  understudy completions fish >/usr/share/fish/vendor_completions.d/understudy.fish")]
pub(super) struct Completions {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Where to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One page a command, understudy.1, understudy-status.1 and so on; what stood there is written over.

Example:
  understudy man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// The folder, made where it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(a: &Completions) -> Result<(), Failure> {
    let mut command = super::Arguments::command();
    let mut text = Vec::new();
    let name = "understudy";
    match a.shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, name, &mut text),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, name, &mut text),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, name, &mut text),
    }
    say(&String::from_utf8_lossy(&text))
}

pub(super) fn man(a: &Man) -> Result<(), Failure> {
    let written = fs::create_dir_all(&a.dir)
        .and_then(|()| clap_mangen::generate_to(super::Arguments::command(), &a.dir));
    written.map_err(|e| {
        Failure::Failed(format!(
            "the pages cannot be written to {}: {e}",
            a.dir.display()
        ))
    })
}
