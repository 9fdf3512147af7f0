# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role shows in a plan is what the module sets."""

from __future__ import annotations

from pathlib import Path

import yaml

from ansible_collections.oncall.runbooks.plugins.module_utils.vritti_customers import LIMITS

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vritti"


def test_limits_of_tiers():
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert defaults["vritti_tier_limits"] == LIMITS
    assert defaults["vritti_customer_tier"] in LIMITS
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    for entry in ("upgrade_customer", "rollback_upgrade_customer"):
        assert specs[entry]["options"]["runbook_operation"]["options"]["tier"]["choices"] == list(LIMITS)
