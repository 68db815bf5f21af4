//! Several machines at a time, but no more than asked for.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

/// Machines that run together, and what comes out of them.
pub struct Job<'a, T> {
    /// How many they are.
    pub machines: usize,
    /// Runs them to their end.
    pub run: Box<dyn FnOnce() -> T + Send + 'a>,
}

/// Runs jobs in their order, with at most `slots` machines at a time (one job of more runs alone); gives what came out in
/// the order of the jobs.
pub fn run<T: Send>(jobs: Vec<Job<'_, T>>, slots: usize) -> Vec<T> {
    let (busy, ended) = (&Mutex::new(0), &Condvar::new());
    let locked = || busy.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let mut running = Vec::new();
        for job in jobs {
            let full = |busy: &mut usize| *busy > 0 && *busy + job.machines > slots;
            *ended.wait_while(locked(), full).unwrap_or_else(PoisonError::into_inner) += job.machines;
            running.push(scope.spawn(move || {
                let out = (job.run)();
                *busy.lock().unwrap_or_else(PoisonError::into_inner) -= job.machines;
                ended.notify_one();
                out
            }));
        }
        // A panic of one is a bug of ours, and goes on here.
        running.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn two_at_a_time_run_side_by_side_and_keep_their_order() {
        let both = Barrier::new(2);
        let job = |n| {
            let both = &both;
            let run = move || {
                both.wait();
                n
            };
            Job { machines: 1, run: Box::new(run) }
        };
        assert_eq!(run(vec![job(0), job(1), job(2), job(3)], 2), [0, 1, 2, 3]);
    }

    #[test]
    fn there_are_never_more_machines_than_asked_for_unless_one_job_alone_has_more() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let job = |machines| {
            let (now, most) = (&now, &most);
            let run = move || {
                most.fetch_max(now.fetch_add(machines, Ordering::SeqCst) + machines, Ordering::SeqCst);
                thread::yield_now();
                now.fetch_sub(machines, Ordering::SeqCst);
            };
            Job { machines, run: Box::new(run) }
        };
        run(vec![job(1), job(2), job(1), job(1), job(2), job(1)], 2);
        assert_eq!(most.swap(0, Ordering::SeqCst), 2);
        run(vec![job(1), job(2)], 1);
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}
