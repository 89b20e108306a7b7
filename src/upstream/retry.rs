//! Which source goes on with a transfer that broke. Pure.

/// How often a source may fail in a row without having brought a byte before it is left alone.
const MAX_STRIKES: u8 = 3;

/// What is known of the sources of one object, in order of preference.
#[derive(Debug)]
pub struct Standing(Vec<State>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Failures in a row.
    Strikes(u8),
    /// It sent wrong content.
    Rejected,
}

impl Standing {
    pub fn new(sources: usize) -> Self {
        Self(vec![State::Strikes(0); sources])
    }

    /// The sources worth asking, the best first.
    pub fn worth_asking(&self) -> Vec<usize> {
        let is_worth = |state: &State| matches!(state, State::Strikes(strikes) if *strikes < MAX_STRIKES);
        (0..self.0.len()).filter(|&at| is_worth(&self.0[at])).collect()
    }

    /// A transfer broke. One that brought something is no strike: the source works.
    pub fn broke(&mut self, at: usize, progressed: bool) {
        if let Some(State::Strikes(strikes)) = self.0.get_mut(at) {
            *strikes = if progressed { 0 } else { *strikes + 1 };
        }
    }

    pub fn reject(&mut self, at: usize) {
        if let Some(state) = self.0.get_mut(at) {
            *state = State::Rejected;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_brings_nothing_is_left_after_three_tries() {
        let mut standing = Standing::new(2);
        for _ in 0..MAX_STRIKES {
            assert_eq!(standing.worth_asking(), [0, 1]);
            standing.broke(0, false);
        }
        assert_eq!(standing.worth_asking(), [1]);
    }

    #[test]
    fn a_source_that_brings_something_may_break_as_often_as_it_likes() {
        let mut standing = Standing::new(1);
        (0..100).for_each(|_| standing.broke(0, true));
        assert_eq!(standing.worth_asking(), [0]);
    }

    #[test]
    fn a_source_of_wrong_content_is_not_asked_again() {
        let mut standing = Standing::new(2);
        standing.reject(0);
        standing.broke(0, true);
        assert_eq!(standing.worth_asking(), [1]);
    }
}
