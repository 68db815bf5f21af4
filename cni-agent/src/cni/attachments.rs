//! Keeps calls for one attachment apart without holding up a thread.
//!
//! GC of a network is kept apart from other GCs of it in the same way.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// An attachment: container id and interface name. Of a network's GC: an empty id, which no container has, and the network's name.
pub type Attachment = (String, String);

/// How many calls may wait for one attachment. A runtime has one under way, two if it gave up on the first.
const MAX_WAITING: usize = 8;

/// The attachments that are worked on, each with the jobs that wait for it. A thread that meets a busy attachment leaves
/// its job here and goes on with other work; the thread that holds the attachment takes it up.
#[derive(Debug)]
pub struct Attachments<J> {
    busy: Mutex<BTreeMap<Attachment, VecDeque<J>>>,
}

/// What became of a job.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered<J> {
    /// The attachment is the caller's now, until [`Attachments::next`] gives nothing more.
    Mine(J),
    /// Whoever holds the attachment will do the job.
    Queued,
    /// Too many wait already.
    TooMany(J),
}

impl<J> Attachments<J> {
    /// Nothing is worked on.
    pub fn new() -> Self {
        Self { busy: Mutex::new(BTreeMap::new()) }
    }

    /// Takes an attachment, or lines up for it.
    pub fn enter(&self, attachment: &Attachment, job: J) -> Entered<J> {
        let mut busy = self.lock();
        match busy.get_mut(attachment) {
            Some(waiting) if waiting.len() >= MAX_WAITING => Entered::TooMany(job),
            Some(waiting) => {
                waiting.push_back(job);
                Entered::Queued
            }
            None => {
                busy.insert(attachment.clone(), VecDeque::new());
                Entered::Mine(job)
            }
        }
    }

    /// The next job for an attachment that the caller holds; without one the attachment is free again.
    pub fn next(&self, attachment: &Attachment) -> Option<J> {
        let mut busy = self.lock();
        let job = busy.get_mut(attachment).and_then(VecDeque::pop_front);
        if job.is_none() {
            busy.remove(attachment);
        }
        job
    }

    /// The map is whole between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Attachment, VecDeque<J>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bounds how many lines of calls have an ADD at work, so that threads are left for what else comes: an ADD may wait long.
#[derive(Debug)]
pub struct Turns<J> {
    /// Turns that are free, and the jobs that wait for one.
    state: Mutex<(usize, VecDeque<J>)>,
}

impl<J> Turns<J> {
    /// With so many turns.
    pub fn new(turns: usize) -> Self {
        Self { state: Mutex::new((turns, VecDeque::new())) }
    }

    /// Takes a turn for a job, which comes back; or keeps it until [`Turns::pass`] gives it to somebody.
    pub fn take(&self, job: J) -> Option<J> {
        let mut state = self.lock();
        let (free, waiting) = &mut *state;
        if *free == 0 {
            waiting.push_back(job);
            return None;
        }
        *free -= 1;
        Some(job)
    }

    /// Ends a turn: it passes to the job that has waited longest, which is the caller's to do now.
    pub fn pass(&self) -> Option<J> {
        let mut state = self.lock();
        let (free, waiting) = &mut *state;
        let next = waiting.pop_front();
        if next.is_none() {
            *free += 1;
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, (usize, VecDeque<J>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_for_one_attachment_come_one_after_the_other_in_their_order() {
        let attachments = Attachments::new();
        let (a, b) = (key("a"), key("b"));
        assert_eq!(attachments.enter(&a, 1), Entered::Mine(1));
        assert_eq!(attachments.enter(&a, 2), Entered::Queued);
        assert_eq!(attachments.enter(&b, 3), Entered::Mine(3));
        assert_eq!(attachments.enter(&a, 4), Entered::Queued);
        assert_eq!(attachments.next(&a), Some(2));
        assert_eq!(attachments.enter(&a, 5), Entered::Queued);
        assert_eq!(attachments.next(&a), Some(4));
        assert_eq!(attachments.next(&a), Some(5));
        assert_eq!(attachments.next(&a), None);
        assert_eq!(attachments.enter(&a, 6), Entered::Mine(6));
    }

    #[test]
    fn a_line_that_is_too_long_is_not_joined() {
        let attachments = Attachments::new();
        assert_eq!(attachments.enter(&key("a"), 0), Entered::Mine(0));
        for job in 1..=MAX_WAITING {
            assert_eq!(attachments.enter(&key("a"), job), Entered::Queued);
        }
        assert_eq!(attachments.enter(&key("a"), 99), Entered::TooMany(99));
    }

    #[test]
    fn a_turn_passes_to_the_job_that_has_waited_longest() {
        let turns = Turns::new(1);
        assert_eq!((turns.take(1), turns.take(2), turns.take(3)), (Some(1), None, None));
        assert_eq!((turns.pass(), turns.pass(), turns.pass()), (Some(2), Some(3), None));
        assert_eq!((turns.take(4), turns.take(5)), (Some(4), None), "there is one turn again");
    }

    fn key(container: &str) -> Attachment {
        (container.to_owned(), "eth0".to_owned())
    }
}
