# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a KyroDB server: gRPC service, HTTP observability port and a small persistent store."""
