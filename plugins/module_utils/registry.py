# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes by name; adding one is a line here. A probe is a module with SPEC, RULES, validate, describe and look."""

from __future__ import annotations

import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils.probes import http, kyrodb, log, process, prometheus

PROBES: dict[str, t.Any] = {"http": http, "kyrodb": kyrodb, "log": log, "process": process, "prometheus": prometheus}
