//! An error with its causes in one line.

use std::{error::Error, fmt};

/// Prints an error with all its causes, once each: `{error}: {cause}: {cause of that}`.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(c) = cause {
            let text = c.to_string();
            // Some errors of libraries say what their cause is.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = c.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the kernel refused new-dest")]
    struct Refused(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("the store is away")]
    struct Away(#[source] sqlx::Error);

    #[test]
    fn every_cause_once() {
        let e = Refused(std::io::Error::from_raw_os_error(1));
        assert_eq!(
            Chain(&e).to_string(),
            "the kernel refused new-dest: Operation not permitted (os error 1)"
        );
        let repeated = Away(sqlx::Error::Io(std::io::Error::other("no route")));
        assert_eq!(
            Chain(&repeated).to_string(),
            "the store is away: error communicating with database: no route"
        );
    }
}
