"""Faults to plant in what a keeper answers, and in what decides when it comes again."""

from __future__ import annotations

from recovery_faults import Fault

HELD_FILES = "runtime.keeping:HeldFiles"
HELPER_RESTARTS = "runtime.supervision.helper_restarts:HelperRestarts"

FAULTS = [
    Fault(
        "files-of-the-life-before-stay",
        f"{HELD_FILES}.answer",
        "self.forget(wanted)\n        self.files",
        "self.files",
    ),
    Fault("only-some-files-are-kept", f"{HELD_FILES}.answer", "list(files)", "list(files)[:1]"),
    Fault("files-are-kept-in-another-order", f"{HELD_FILES}.answer", "list(files)", "list(files)[::-1]"),
    Fault(
        "all-names-are-one",
        f"{HELD_FILES}.answer",
        'wanted = name.decode(errors="replace")',
        "wanted = str(bool(name))",
    ),
    Fault(
        "what-is-fetched-is-gone",
        f"{HELD_FILES}.answer",
        "self.files.get(wanted, [])",
        "self.files.pop(wanted, [])",
    ),
    Fault("nothing-is-found", f"{HELD_FILES}.answer", "self.files.get(wanted, [])", "[]"),
    Fault("files-that-nobody-wanted-stay-open", f"{HELD_FILES}.answer", "self.close(file)"),
    Fault("nothing-is-refused", f"{HELD_FILES}.answer", "return REFUSED, []", "return DONE, []"),
    Fault("no-files-take-the-place-of-some", f"{HELD_FILES}.answer", "and wanted and files", "and wanted"),
    Fault("files-without-a-name-are-kept", f"{HELD_FILES}.answer", "and wanted and files", "and files"),
    Fault(
        "what-is-let-go-stays",
        f"{HELD_FILES}.answer",
        "if what == FORGET and wanted:\n        self.forget(wanted)",
        "if what == FORGET and wanted:",
    ),
    Fault("files-that-are-let-go-stay-open", f"{HELD_FILES}.forget", "self.close(file)"),
    Fault(
        "closed-files-are-handed-out",
        f"{HELD_FILES}.forget",
        "self.files.pop(name, [])",
        "self.files.get(name, [])",
    ),
    Fault(
        "a-second-keeper-is-started",
        f"{HELPER_RESTARTS}.next_due",
        "None if self.running else self.not_before",
        "self.not_before",
    ),
    Fault(
        "no-keeper-comes-after-the-first",
        f"{HELPER_RESTARTS}.on_death",
        "self.running, self.ready_at = False, None",
    ),
    Fault(
        "the-first-death-is-followed-by-a-pause",
        f"{HELPER_RESTARTS}.on_death",
        "2**self.in_a_row - 1",
        "2**self.in_a_row",
    ),
    Fault("keepers-that-do-not-last-come-at-once", f"{HELPER_RESTARTS}.on_death", "self.in_a_row += 1"),
    Fault("the-pause-never-gets-shorter", f"{HELPER_RESTARTS}.on_death", "self.in_a_row = 0"),
]
