# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How to reach a KyroDB instance."""

    DOCUMENTATION = r"""
options:
  address:
    description: Host and gRPC port. KyroDB's text instance is usually C(localhost:50051), the image instance
      C(localhost:50052).
    type: str
    required: true
  tls:
    description: Whether the instance speaks TLS. It is off in KyroDB's default configuration.
    type: bool
    default: false
  ca_path:
    description: The certificate authority that signed the instance's certificate, as a PEM file on the target.
      Without it, the system's.
    type: path
  cert_path:
    description: The client's certificate, as a PEM file on the target, where the instance asks for one.
    type: path
  key_path:
    description: The key of O(cert_path), as a PEM file on the target.
    type: path
  server_name:
    description: The name to verify in the certificate, where it is not the host in O(address).
    type: str
  service:
    description: The gRPC service. The runbooks write C(kyrodb.KyroDB), which no release of KyroDB has; set it where
      a deployment does.
    type: str
    default: kyrodb.v1.KyroDBService
  http_url:
    description: The HTTP observability port, asked where C(grpcio) is missing. Without it, the gRPC port plus 1000
      on the same host.
    type: str
"""
