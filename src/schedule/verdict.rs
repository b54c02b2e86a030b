//! From a failure to what is done about it.

use crate::config::OnPoison;
use crate::failure::{Class, Failure, Scope};

/// What is done about a message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No verdict: hand it over again.
    Again,
    /// What the failure concerns waits and is tried again.
    Wait,
    /// A permanent verdict fell on a batch: its lane waits until it was tried alone.
    Suspect,
    /// It goes to the dead letters.
    Bury,
}

/// What is known about a failed message besides its failure.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// It was tried alone, so that a permanent verdict means it.
    pub alone: bool,
    /// Attempts so far, this one among them.
    pub attempts: u32,
    /// After how many it is given up.
    pub max_attempts: Option<u32>,
    /// What its route does with poison.
    pub on_poison: OnPoison,
}

/// What is done about it (DESIGN.md 5).
///
/// An outage of the whole transport says nothing about a message: it never uses up attempts.
pub fn action(failure: &Failure, circumstances: Circumstances) -> Action {
    let worn_out = circumstances.max_attempts.is_some_and(|max| circumstances.attempts >= max);
    match failure.class {
        Class::Fatal => Action::Again,
        Class::Permanent if !circumstances.alone => Action::Suspect,
        Class::Permanent => match circumstances.on_poison {
            OnPoison::DeadLetter => Action::Bury,
            OnPoison::Hold => Action::Wait,
        },
        Class::Transient | Class::Hold if worn_out && failure.scope != Scope::Transport => Action::Bury,
        Class::Transient | Class::Hold => Action::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(class: Class, scope: Scope, circumstances: Circumstances) -> Action {
        action(&Failure::new(class, scope, "why"), circumstances)
    }

    const PLAIN: Circumstances =
        Circumstances { alone: false, attempts: 1, max_attempts: None, on_poison: OnPoison::DeadLetter };

    #[test]
    fn only_a_message_that_fails_alone_is_dead() {
        let alone = Circumstances { alone: true, ..PLAIN };
        assert_eq!(given(Class::Permanent, Scope::Lane, PLAIN), Action::Suspect);
        assert_eq!(given(Class::Permanent, Scope::Lane, alone), Action::Bury);
        let hold = Circumstances { on_poison: OnPoison::Hold, ..alone };
        assert_eq!(given(Class::Permanent, Scope::Lane, hold), Action::Wait);
    }

    #[test]
    fn nothing_is_given_up_without_a_limit_and_never_for_an_outage() {
        let many = Circumstances { attempts: u32::MAX, ..PLAIN };
        for class in [Class::Transient, Class::Hold] {
            assert_eq!(given(class, Scope::Lane, many), Action::Wait);
        }
        let limited = Circumstances { max_attempts: Some(3), ..many };
        assert_eq!(given(Class::Hold, Scope::Route, limited), Action::Bury);
        assert_eq!(given(Class::Transient, Scope::Transport, limited), Action::Wait);
        assert_eq!(given(Class::Transient, Scope::Lane, Circumstances { attempts: 2, ..limited }), Action::Wait);
        assert_eq!(given(Class::Fatal, Scope::Lane, limited), Action::Again);
    }
}
