//! `understudy ipvs timeouts`.

use super::{Failure, block_on, connect, kernel, say, write};
use crate::{config::duration, model::Timeouts};

/// What to change: nothing, or some of them.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Established TCP connections: seconds, or 15m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    tcp: Option<u32>,
    /// TCP connections after a FIN
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    tcp_fin: Option<u32>,
    /// UDP
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    udp: Option<u32>,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    // A zero is no change.
    let to = Timeouts {
        tcp_s: a.tcp.unwrap_or(0),
        tcp_fin_s: a.tcp_fin.unwrap_or(0),
        udp_s: a.udp.unwrap_or(0),
    };
    let now = block_on(async {
        let mut ipvs = connect().await?;
        if (to.tcp_s, to.tcp_fin_s, to.udp_s) != (0, 0, 0) {
            write::set_timeouts(&mut ipvs, &to).await?;
        }
        ipvs.timeouts().await.map_err(kernel)
    })?;
    say(&format!(
        "tcp {}s\ntcp-fin {}s\nudp {}s\n",
        now.tcp_s, now.tcp_fin_s, now.udp_s
    ))
}

/// Whole seconds, as a plain number or with a unit.
fn seconds(text: &str) -> Result<u32, String> {
    let seconds = match text.parse() {
        Ok(seconds) => seconds,
        Err(_) => {
            let time = duration::parse(text).map_err(|e| format!("{e}; or seconds, as in 900"))?;
            if time.subsec_millis() != 0 {
                return Err("the kernel counts whole seconds".to_owned());
            }
            u32::try_from(time.as_secs()).map_err(|e| format!("too long: {e}"))?
        }
    };
    if seconds == 0 {
        return Err("a timeout is at least 1 s: to the kernel 0 says no change".to_owned());
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_with_or_without_a_unit() {
        assert_eq!(seconds("900"), Ok(900));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("2000ms"), Ok(2));
        for (text, says) in [
            ("0", "at least 1 s"),
            ("0m", "at least 1 s"),
            ("1500ms", "whole seconds"),
            ("15 m", "is no duration"),
            ("-1", "is no duration"),
            ("9999999h", "too long"),
        ] {
            let e = seconds(text).unwrap_err();
            assert!(e.contains(says), "{text}: {e}");
        }
    }
}
