"""What became of a job that did before what is asked for now, in words that lead on.

Said wherever the same is asked for again: by a route, by a person, by a backfill.
"""

from __future__ import annotations

from typing import assert_never

from dicomai.store.job import Job, JobId


def became(job: Job) -> str:
    """Return what became of a job, and the command that leads on, to be put after its name."""
    match job.state:
        case "done":
            withdrawn = "" if job.withdrawn_by is None else " and withdrawn"
            return f"is done{withdrawn}. {once_more(job)}"
        case "cancelled":
            return f"was cancelled. {once_more(job)}"
        case "failed":
            return f"failed. To try it again: dicomai retry {job.id}"
        case "running":
            return f"runs. See: dicomai job {job.id}"
        case "waiting" | "queued" | "held":
            return f"is {job.state}. See: dicomai job {job.id}"
        case _:
            assert_never(job.state)


def once_more(job: Job, results_of: Job | None = None) -> str:
    """Return the command that has done once more what a job did that is over.

    Parameters
    ----------
    results_of
        Whose results a delivery sends.
    """
    match job.kind:
        case "analyse":
            return f"For a new run: dicomai retry {job.id} --again"
        case "retrieve":
            return f"For another: dicomai retrieve {job.node} --study {job.study_instance_uid}"
        case "deliver":
            if results_of is not None and results_of.is_withdrawal:
                return (
                    f"To send its note by hand: dicomai send {job.node} FILE, with the file that "
                    f"dicomai job {results_of.id} names"
                )
            return f"For new results, which are sent too: dicomai retry {job.result_of} --again"
        case _:
            assert_never(job.kind)


def was_pruned(job: JobId, model: str) -> str:
    """Return what is said of an analysis of the same images whose row is gone.

    Nobody knows any more whether it gave results: it may have failed, or been cancelled.
    """
    return (
        f"Job {job} was of the same images, and was deleted by retention with what became of it: "
        f"nothing is analysed twice by itself. For a new run by hand: dicomai run {model} FOLDER"
    )
