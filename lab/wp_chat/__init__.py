# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for wp_chat: as its current head is, and as the runbook's text has it."""
