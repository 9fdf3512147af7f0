# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the probes of all checks at once, on the target. What they saw is judged elsewhere, but for what `needs` asks."""

from __future__ import annotations

import threading
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES

Look = dict[str, t.Any]


def one_look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> Look:
    """One probe's answer as data; a probe that breaks takes nothing else down."""
    began = time.monotonic()
    result: Look = {"outcome": "value", "value": None, "samples": None, "evidence": {}, "note": None}
    try:
        if source.get("problem"):
            raise NoAnswer(source["problem"], "secret")
        result.update(PROBES[source["probe"]].look(context, source, check))
    except Absent as absent:
        result.update(outcome="absent", note=str(absent))
    except NoAnswer as error:
        result.update(outcome="no_answer", note=str(error), kind=error.kind)
    except Exception as error:  # noqa: BLE001 - whatever a probe does, the other checks are answered
        result.update(outcome="no_answer", note=f"The probe {source['probe']} broke: {type(error).__name__}: {error}.")
    scale = source.get("scale")
    if result["outcome"] == "value" and scale not in (None, 1) and judge.number(result["value"]) is not None:
        result["value"] = judge.number(result["value"]) * scale
    result["duration_ms"] = round((time.monotonic() - began) * 1000, 1)
    return result


class _Run:
    def __init__(self, checks: t.Sequence[t.Mapping[str, t.Any]], context: Context) -> None:
        self.checks = {check["id"]: check for check in checks}
        self.context = context
        self.done = {name: threading.Event() for name in self.checks}
        self.ok: dict[str, bool] = {}
        self.waiting: set[str] = set()
        self.looks: dict[str, list[Look]] = {name: [] for name in self.checks}
        self.unmet: dict[str, list[str]] = {}

    def check(self, name: str) -> None:
        check = self.checks[name]
        try:
            self.waiting.add(name)
            for other in check.get("needs") or []:
                if other in self.done:
                    self.done[other].wait()
            self.waiting.discard(name)
            unmet = [other for other in check.get("needs") or [] if not self.ok.get(other)]
            if unmet:
                self.unmet[name] = unmet
                return
            for source in check["sources"]:
                look = (
                    one_look(self.context, source, check)
                    if source.get("when", True)
                    else {"outcome": "absent", "note": source.get("note") or "not configured here"}
                )
                self.looks[name].append(look)
                # JSON is judged on the controller, so the next source may be wanted after all.
                if judge.enough(look, check.get("min_samples") or 0):
                    break
            self.ok[name] = judge.is_ok(check, self.looks[name])
        finally:
            self.done[name].set()


def _timeout(source: t.Mapping[str, t.Any], context: Context) -> float:
    return float(source.get("timeout") or context.timeout)


def _longest(name: str, checks: t.Mapping[str, t.Mapping[str, t.Any]], context: Context) -> float:
    """The seconds that sources asked one after the other may take until this check is done; needs are no circle."""
    needs = [other for other in checks[name].get("needs") or [] if other in checks]
    own = sum(2 * _timeout(source, context) + 1 for source in checks[name]["sources"])
    return own + max((_longest(other, checks, context) for other in needs), default=0.0)


def run(checks: t.Sequence[t.Mapping[str, t.Any]], context: Context) -> dict[str, dict[str, t.Any]]:
    """Every check's looks in the order of its sources, or the needs that were not met."""
    state = _Run(checks, context)
    threads = {name: threading.Thread(target=state.check, args=(name,), daemon=True) for name in state.checks}
    for thread in threads.values():
        thread.start()
    # Each source has its own deadline; this one is for a probe that ignores it.
    longest = max((_longest(name, state.checks, context) for name in state.checks), default=0.0)
    limit = time.monotonic() + context.sample_seconds + longest
    for thread in threads.values():
        thread.join(max(0.0, limit - time.monotonic()))
    results: dict[str, dict[str, t.Any]] = {}
    for name, thread in threads.items():
        looks = list(state.looks[name])
        if name in state.waiting:
            # What it needs has not ended, which is not ok.
            unmet = [other for other in state.checks[name]["needs"] if not state.ok.get(other)]
            results[name] = {"looks": [], "unmet": unmet}
            continue
        if thread.is_alive():
            sources = state.checks[name]["sources"]
            deadline = _timeout(sources[min(len(looks), len(sources) - 1)], context)
            looks.append(
                {"outcome": "no_answer", "note": f"The probe did not end within its deadline of {deadline:g} s."}
            )
        results[name] = {"looks": looks, "unmet": state.unmet.get(name, [])}
    return results
