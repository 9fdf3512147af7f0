# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for the services of the runbooks, for the demo and the integration tests."""
