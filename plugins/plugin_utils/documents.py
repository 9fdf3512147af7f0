# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values out of documents, by JMESPath, on the controller."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail


def search(expression: str, data: t.Any) -> t.Any:
    """What the expression picks; ValueError with one line where it is none, or does not fit the data."""
    try:
        import jmespath
    except ImportError:
        raise AnsibleActionFail(
            "The Python package jmespath is not installed beside ansible-core; install it to judge JSON."
        ) from None
    try:
        return jmespath.search(expression, data)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(str(error).splitlines()[0]) from None
