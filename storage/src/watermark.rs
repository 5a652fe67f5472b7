//! The watermark: how much of what was acknowledged a store must hold.

/// How much of what was acknowledged a store must hold. It is kept outside of the store and shows
/// whether the store was replaced by an earlier state of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// How often the store was found to be in an earlier state.
    pub epoch: u64,
    /// The name of the start of a server whose commits are counted.
    pub process: String,
    /// How many of its commits were acknowledged.
    pub commits: u64,
    /// The highest timeline of a shared database that was ever seen: each promotion of a standby
    /// begins another one. 0 if none was seen.
    pub timeline: u32,
    /// The same counts of other servers on the same store, by the names of their starts. So the
    /// watermarks of all servers keep what was acknowledged to one of them.
    pub others: Vec<(String, u64)>,
}

/// How much the watermark of an unfinished epoch adds to the acknowledged commits. No store
/// satisfies it.
const UNFINISHED: u64 = 1 << 62;
/// What earlier programs wrote for an unfinished epoch, without the acknowledged commits.
const UNFINISHED_BEFORE: u64 = i64::MAX.cast_unsigned();

impl Watermark {
    /// The name of the process in the watermark of a store with one server.
    pub const ALONE: &str = "redb";

    /// Returns the watermark for an epoch whose beginning takes many commits, for use until the
    /// last of them. After an interruption the next start finds that the store does not satisfy it,
    /// and begins the epoch again.
    #[must_use]
    pub fn unfinished(&self) -> Self {
        Self { commits: self.acknowledged().saturating_add(UNFINISHED), ..self.clone() }
    }

    /// Returns how many commits were acknowledged, also for an unfinished epoch; 0 if that is not
    /// known.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        match self.commits {
            UNFINISHED_BEFORE => 0,
            commits => commits.checked_sub(UNFINISHED).unwrap_or(commits),
        }
    }
}

impl std::fmt::Display for Watermark {
    /// Writes a first line, which programs from before timelines can read as well, and one line for
    /// each other server.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch, process, commits, timeline, others } = self;
        writeln!(f, "{epoch} {process} {commits} {timeline}")?;
        others.iter().try_for_each(|(process, commits)| writeln!(f, "{process} {commits}"))
    }
}

impl std::str::FromStr for Watermark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut lines = text.lines();
        let mut words = lines.next().ok_or(())?.split_whitespace();
        let mut next = || words.next().ok_or(());
        let epoch = next()?.parse().map_err(|_| ())?;
        let process = next()?.to_owned();
        let commits = next()?.parse().map_err(|_| ())?;
        // Watermarks from before timelines end here.
        let timeline = next().map_or(Ok(0), str::parse).map_err(|_| ())?;
        let other = |line: &str| {
            let (process, commits) = line.split_once(' ').ok_or(())?;
            Ok((process.to_owned(), commits.trim().parse().map_err(|_| ())?))
        };
        let others = lines.filter(|line| !line.trim().is_empty()).map(other);
        Ok(Self { epoch, process, commits, timeline, others: others.collect::<Result<_, ()>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_is_read_as_it_was_written() {
        let others = vec![("c0ffee".to_owned(), 9), ("decade".to_owned(), u64::MAX)];
        for others in [Vec::new(), others] {
            let mark =
                Watermark { epoch: 3, process: "facade".into(), commits: 12, timeline: 7, others };
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
    }

    #[test]
    fn a_watermark_without_a_timeline_is_read() {
        let mark =
            Watermark { epoch: 1, process: "redb".into(), commits: 5, ..Watermark::default() };
        assert_eq!("1 redb 5\n".parse(), Ok(mark));
    }

    #[test]
    fn an_unfinished_watermark_demands_more_than_exists_and_keeps_the_acknowledged_count() {
        let mark = Watermark { commits: 7, ..Watermark::default() };
        let unfinished = mark.unfinished();
        assert!(unfinished.commits > u64::from(u32::MAX));
        assert_eq!((mark.acknowledged(), unfinished.acknowledged()), (7, 7));
        assert_eq!(unfinished.unfinished(), unfinished);
        let before = Watermark { commits: i64::MAX.cast_unsigned(), ..mark };
        assert_eq!(before.acknowledged(), 0);
    }

    #[test]
    fn text_that_is_not_a_watermark_is_refused() {
        for text in ["", "1", "1 redb", "1 redb five", "1 redb 5 seven", "1 redb 5 7\nalone"] {
            assert_eq!(text.parse::<Watermark>(), Err(()), "{text:?}");
        }
    }
}
