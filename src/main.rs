//! `understudy`: command line in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    understudy::cli::main()
}
