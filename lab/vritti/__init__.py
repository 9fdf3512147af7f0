# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Vritti's HTTP service, as of v0.1.0 and as of its current head."""
