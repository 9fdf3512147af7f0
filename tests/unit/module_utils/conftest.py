# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the target's side share: an authority with a server certificate, and a web server."""

from __future__ import annotations

import os

import pytest

from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

# Children are started while gRPC runs, and go straight on to another program: its handlers for fork() only harm them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """An authority, a certificate that it signed for localhost, and a second authority that signed nothing."""
    return helpers.make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture()
def web():
    """A real HTTP server whose pages the test scripts."""
    with helpers.Web() as server:
        yield server
