//! The options of one line, taken as `ipvsadm -R` takes them: its words are cut by
//! `config_stream_read` in ipvsadm's config_stream.c and read by popt (`poptGetNextOpt`).

use std::{fmt, iter::Peekable, ops::Range};

/// A part of the source and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl Word<'_> {
    pub(super) fn span(self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }
}

/// A mistake and its place.
pub(super) type Mistake = (Range<usize>, String);

/// The words of a line. One that is `ipvsadm` is left out wherever it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a>(pub(super) Word<'a>);

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r');
        loop {
            let Word { text, at } = self.0;
            let start = text.bytes().position(|b| !blank(&b))?;
            let (_, text) = text.split_at(start);
            let end = text.bytes().position(|b| blank(&b)).unwrap_or(text.len());
            let (word, rest) = text.split_at(end);
            let at = at + start;
            self.0 = Word {
                text: rest,
                at: at + end,
            };
            if word != "ipvsadm" {
                return Some(Word { text: word, at });
            }
        }
    }
}

/// What a line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `-A`
    Service,
    /// `-a`
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opt {
    Command(Command),
    OtherCommand,
    Tcp,
    Udp,
    Sctp,
    Mark,
    Six,
    Scheduler,
    Persistent,
    Netmask,
    OnePacket,
    Engine,
    Flags,
    Real,
    Gate,
    Ipip,
    Masq,
    Weight,
    Upper,
    Lower,
    TunnelType,
    TunnelPort,
    NoChecksum,
    Checksum,
    RemoteChecksum,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
    /// The next word, unless it begins with a dash.
    Perhaps,
}

impl Opt {
    fn by_letter(letter: char) -> Option<Self> {
        Some(match letter {
            'A' => Self::Command(Command::Service),
            'a' => Self::Command(Command::Server),
            'E' | 'D' | 'C' | 'R' | 'S' | 'e' | 'd' | 'L' | 'l' | 'Z' | 'h' | 'v' => {
                Self::OtherCommand
            }
            't' => Self::Tcp,
            'u' => Self::Udp,
            'f' => Self::Mark,
            '6' => Self::Six,
            's' => Self::Scheduler,
            'p' => Self::Persistent,
            'M' => Self::Netmask,
            'o' => Self::OnePacket,
            'b' => Self::Flags,
            'r' => Self::Real,
            'g' => Self::Gate,
            'i' => Self::Ipip,
            'm' => Self::Masq,
            'w' => Self::Weight,
            'x' => Self::Upper,
            'y' => Self::Lower,
            _ => return None,
        })
    }

    fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "add-service" => Self::Command(Command::Service),
            "add-server" => Self::Command(Command::Server),
            "edit-service" | "delete-service" | "clear" | "restore" | "save" | "edit-server"
            | "delete-server" | "list" | "zero" | "set" | "start-daemon" | "stop-daemon"
            | "help" | "version" => Self::OtherCommand,
            "tcp-service" => Self::Tcp,
            "udp-service" => Self::Udp,
            "sctp-service" => Self::Sctp,
            "fwmark-service" => Self::Mark,
            "ipv6" => Self::Six,
            "scheduler" => Self::Scheduler,
            "persistent" => Self::Persistent,
            "netmask" => Self::Netmask,
            "ops" => Self::OnePacket,
            "pe" => Self::Engine,
            "sched-flags" => Self::Flags,
            "real-server" => Self::Real,
            "gatewaying" => Self::Gate,
            "ipip" => Self::Ipip,
            "masquerading" => Self::Masq,
            "weight" => Self::Weight,
            "u-threshold" => Self::Upper,
            "l-threshold" => Self::Lower,
            "tun-type" => Self::TunnelType,
            "tun-port" => Self::TunnelPort,
            "tun-nocsum" => Self::NoChecksum,
            "tun-csum" => Self::Checksum,
            "tun-remcsum" => Self::RemoteChecksum,
            _ => return None,
        })
    }

    fn takes(self) -> Takes {
        match self {
            Self::Persistent => Takes::Perhaps,
            Self::Command(_)
            | Self::OtherCommand
            | Self::Six
            | Self::OnePacket
            | Self::Gate
            | Self::Ipip
            | Self::Masq
            | Self::NoChecksum
            | Self::Checksum
            | Self::RemoteChecksum => Takes::Nothing,
            _ => Takes::Value,
        }
    }

    /// The command that it belongs to, if not to both.
    pub(super) fn belongs_to(self) -> Option<Command> {
        match self {
            Self::Scheduler
            | Self::Persistent
            | Self::Netmask
            | Self::OnePacket
            | Self::Engine
            | Self::Flags => Some(Command::Service),
            Self::Real
            | Self::Gate
            | Self::Ipip
            | Self::Masq
            | Self::Weight
            | Self::Upper
            | Self::Lower
            | Self::TunnelType
            | Self::TunnelPort
            | Self::NoChecksum
            | Self::Checksum
            | Self::RemoteChecksum => Some(Command::Server),
            _ => None,
        }
    }
}

/// An option as a line gives it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    pub(super) opt: Opt,
    /// As it is written, without a value.
    pub(super) name: Word<'a>,
    pub(super) value: Option<Word<'a>>,
}

impl<'a> Given<'a> {
    /// The value, of an option without one its name.
    pub(super) fn word(&self) -> Word<'a> {
        self.value.unwrap_or(self.name)
    }
}

/// As it is written, with its dashes.
impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dash = match self.name.text.starts_with('-') {
            true => "",
            false => "-",
        };
        write!(f, "{dash}{}", self.name.text)
    }
}

/// All that a line gives.
#[derive(Debug, Default)]
pub(super) struct Line<'a> {
    /// `-t`, `-u`, `--sctp-service` or `-f`.
    pub(super) service: Option<Given<'a>>,
    pub(super) six: Option<Given<'a>>,
    pub(super) scheduler: Option<Given<'a>>,
    pub(super) persistent: Option<Given<'a>>,
    pub(super) netmask: Option<Given<'a>>,
    pub(super) one_packet: Option<Given<'a>>,
    pub(super) engine: Option<Given<'a>>,
    pub(super) flags: Option<Given<'a>>,
    pub(super) real: Option<Given<'a>>,
    /// `-g`, `-i` or `-m`.
    pub(super) forward: Option<Given<'a>>,
    pub(super) weight: Option<Given<'a>>,
    pub(super) upper: Option<Given<'a>>,
    pub(super) lower: Option<Given<'a>>,
    pub(super) tunnel_type: Option<Given<'a>>,
    pub(super) tunnel_port: Option<Given<'a>>,
    /// `--tun-nocsum`, `--tun-csum` or `--tun-remcsum`.
    pub(super) checksum: Option<Given<'a>>,
}

impl<'a> Line<'a> {
    /// Takes in the options of the words of a line; `None` of a line without words.
    ///
    /// # Errors
    ///
    /// The first place that cannot be read: what follows there cannot be told apart.
    pub(super) fn read(&mut self, words: Words<'a>) -> Result<Option<Command>, Mistake> {
        let mut words = words.peekable();
        let mut command = None;
        while let Some(word) = words.next() {
            let value = |opt: Opt, words: &mut Peekable<Words<'a>>| match opt.takes() {
                Takes::Nothing => None,
                Takes::Value => words.next(),
                Takes::Perhaps => words.next_if(|w| !w.text.starts_with('-')),
            };
            if let Some(long) = word.text.strip_prefix("--") {
                let (name, glued) = match long.split_once('=') {
                    Some((name, glued)) => (name, Some(glued)),
                    None => (long, None),
                };
                let opt = Opt::by_name(name).ok_or_else(|| unknown(word.span(), name, "--"))?;
                let end = "--".len() + name.len();
                let glued = glued.map(|text| Word {
                    text,
                    at: word.at + end + 1,
                });
                let name = Word {
                    text: word.text.split_at(end).0,
                    at: word.at,
                };
                if let Some(glued) = glued.filter(|_| opt.takes() == Takes::Nothing) {
                    return Err((glued.span(), format!("{} takes no value", name.text)));
                }
                let value = glued.or_else(|| value(opt, &mut words));
                self.take(&mut command, Given { opt, name, value })?;
                continue;
            }
            let mut letters = match word.text.strip_prefix('-') {
                Some(text) if !text.is_empty() => Word {
                    text,
                    at: word.at + 1,
                },
                _ => {
                    let message = format!("{:?} is no option: options begin with -", word.text);
                    return Err((word.span(), message));
                }
            };
            while let Some(letter) = letters.text.chars().next() {
                let (text, rest) = letters.text.split_at(letter.len_utf8());
                let name = Word {
                    text,
                    at: letters.at,
                };
                letters = Word {
                    text: rest,
                    at: letters.at + text.len(),
                };
                let opt = Opt::by_letter(letter).ok_or_else(|| unknown(name.span(), text, "-"))?;
                // The rest of the word is the value of an option that takes one.
                let value = match opt.takes() {
                    Takes::Nothing => None,
                    _ if rest.is_empty() => value(opt, &mut words),
                    _ => {
                        let text = rest.strip_prefix('=').unwrap_or(rest);
                        let at = letters.at + rest.len() - text.len();
                        letters.text = "";
                        Some(Word { text, at })
                    }
                };
                self.take(&mut command, Given { opt, name, value })?;
            }
        }
        Ok(command)
    }

    fn take(&mut self, command: &mut Option<Command>, given: Given<'a>) -> Result<(), Mistake> {
        let opt = given.opt;
        let wrong = |message: &str| Err((given.name.span(), format!("{given} {message}")));
        match (opt, *command) {
            (Opt::OtherCommand, _) => {
                return wrong("is another command: a saved table holds only -A and -a");
            }
            (Opt::Command(_), Some(_)) => return wrong("is a second command on this line"),
            (Opt::Command(c), None) => {
                *command = Some(c);
                return Ok(());
            }
            (_, None) => return wrong("stands before the command: a line begins with -A or -a"),
            (_, Some(_)) => {}
        }
        // What -b without one means depends on the scheduler.
        if opt.takes() == Takes::Value && opt != Opt::Flags && given.value.is_none() {
            return wrong("needs a value");
        }
        match self.slot(opt) {
            // Said again, -6 says the same.
            Some(Some(_)) if opt == Opt::Six => {}
            Some(Some(before)) if before.opt == opt => return wrong("stands twice on this line"),
            Some(Some(before)) => {
                return wrong(&format!("contradicts {before} on this line: keep one"));
            }
            Some(empty) => *empty = Some(given),
            None => {}
        }
        Ok(())
    }

    fn slot(&mut self, opt: Opt) -> Option<&mut Option<Given<'a>>> {
        Some(match opt {
            Opt::Command(_) | Opt::OtherCommand => return None,
            Opt::Tcp | Opt::Udp | Opt::Sctp | Opt::Mark => &mut self.service,
            Opt::Six => &mut self.six,
            Opt::Scheduler => &mut self.scheduler,
            Opt::Persistent => &mut self.persistent,
            Opt::Netmask => &mut self.netmask,
            Opt::OnePacket => &mut self.one_packet,
            Opt::Engine => &mut self.engine,
            Opt::Flags => &mut self.flags,
            Opt::Real => &mut self.real,
            Opt::Gate | Opt::Ipip | Opt::Masq => &mut self.forward,
            Opt::Weight => &mut self.weight,
            Opt::Upper => &mut self.upper,
            Opt::Lower => &mut self.lower,
            Opt::TunnelType => &mut self.tunnel_type,
            Opt::TunnelPort => &mut self.tunnel_port,
            Opt::NoChecksum | Opt::Checksum | Opt::RemoteChecksum => &mut self.checksum,
        })
    }

    /// All but what names the service, in no order.
    pub(super) fn others(&self) -> impl Iterator<Item = &Given<'a>> {
        [
            &self.scheduler,
            &self.persistent,
            &self.netmask,
            &self.one_packet,
            &self.engine,
            &self.flags,
            &self.real,
            &self.forward,
            &self.weight,
            &self.upper,
            &self.lower,
            &self.tunnel_type,
            &self.tunnel_port,
            &self.checksum,
        ]
        .into_iter()
        .flatten()
    }
}

fn unknown(span: Range<usize>, name: &str, dashes: &str) -> Mistake {
    let message = format!("{dashes}{name} is no option of -A or -a: man ipvsadm has them");
    (span, message)
}
