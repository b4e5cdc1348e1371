"""Which options of ssh_config we follow ourselves, which make no difference to us, and for which ssh itself is needed.

One table with a reason per group. An option in force that stands nowhere here needs ssh: silently leaving out
something the user wrote could connect to another machine, or trust one that the user does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Options = dict[str, tuple[str, ...]]
"""`ssh -G`: keyword in lower case -> its values, one per line."""

SUPPORTED = frozenset(
    {
        "host",
        "hostname",
        "port",
        "user",
        "identityfile",
        "identitiesonly",
        "identityagent",
        "userknownhostsfile",
        "globalknownhostsfile",
        "hostkeyalias",
        "addressfamily",
        "connecttimeout",
        "stricthostkeychecking",
        "proxyjump",
        "proxycommand",
        "bindaddress",
        "certificatefile",
        "hashknownhosts",
    }
)

HARMLESS = {
    "one connection of our own, never shared": "controlmaster controlpath controlpersist",
    "our own heartbeat and buffers": (
        "serveraliveinterval serveralivecountmax tcpkeepalive ipqos rekeylimit compression compressionlevel "
        "channeltimeout obscurekeystroketiming connectionattempts"
    ),
    "never given to a host, whatever ssh_config says": (
        "forwardagent forwardx11 forwardx11trusted forwardx11timeout xauthlocation"
    ),
    "forwards belong to an ssh session of the user's; the way to the host is the same without them": (
        "localforward remoteforward dynamicforward clearallforwardings exitonforwardfailure gatewayports "
        "permitremoteopen streamlocalbindmask streamlocalbindunlink tunnel tunneldevice"
    ),
    "a run's environment comes from hosts.toml, --env and --secret": "sendenv setenv",
    "how ssh talks to a person or a terminal": (
        "loglevel logverbose syslogfacility visualhostkey fingerprinthash escapechar enableescapecommandline "
        "requesttty sessiontype stdinnull forkafterauthentication batchmode numberofpasswordprompts "
        "warnweakcrypto tag versionaddendum ignoreunknown"
    ),
    "more trust than we give: without it we check more, and ssh gets the opposite from us": (
        "checkhostip verifyhostkeydns nohostauthenticationforlocalhost updatehostkeys"
    ),
    "ways to log in that we do not use; the login says so if none is left": (
        "preferredauthentications passwordauthentication kbdinteractiveauthentication kbdinteractivedevices "
        "challengeresponseauthentication hostbasedacceptedalgorithms enablesshkeysign addkeystoagent usekeychain"
    ),
    "a command of the user's own beside a session, which we do not run": "permitlocalcommand localcommand",
    "only speaks with another option, which needs ssh": (
        "canonicalizefallbacklocal canonicalizemaxdots canonicaldomains canonicalizepermittedcnames "
        "gssapikeyexchange gssapidelegatecredentials gssapitrustdns gssapirenewalforcesrekey "
        "gssapikexalgorithms gssapiclientidentity gssapiserveridentity"
    ),
}

# Linux distributions set these for every host (Fedora's crypto policies, Debian's GSSAPIAuthentication); what the
# system's own file says is let pass, what the user's file says is followed by ssh.
SYSTEM_WIDE = {
    "ciphers": "Ciphers",
    "macs": "MACs",
    "kexalgorithms": "KexAlgorithms",
    "hostkeyalgorithms": "HostKeyAlgorithms",
    "casignaturealgorithms": "CASignatureAlgorithms",
    "pubkeyacceptedalgorithms": "PubkeyAcceptedAlgorithms",
    "requiredrsasize": "RequiredRSASize",
    "gssapiauthentication": "GSSAPIAuthentication",
}

LACKED = {
    **SYSTEM_WIDE,
    "bindinterface": "BindInterface",
    "canonicalizehostname": "CanonicalizeHostname",
    "pkcs11provider": "PKCS11Provider",
    "pubkeyauthentication": "PubkeyAuthentication",
    "hostbasedauthentication": "HostbasedAuthentication",
    "securitykeyprovider": "SecurityKeyProvider",
    "knownhostscommand": "KnownHostsCommand",
    "revokedhostkeys": "RevokedHostKeys",
    "proxyusefdpass": "ProxyUseFdpass",
}
"""Options that ssh follows and paramiko lacks, as people write them."""

REFUSED = {"remotecommand": "RemoteCommand"}
"""Refused over every transport: it says that another command than ours is to run."""

_HARMLESS = frozenset(word for words in HARMLESS.values() for word in words.split())


def find_unsupported(options: Options, baseline: Options) -> list[str]:
    """Find the keywords in force (they differ from a run without any ssh_config) that we would not follow ourselves."""
    return [
        keyword
        for keyword, values in options.items()
        if values != baseline.get(keyword)
        and set(values) != {"none"}
        and keyword not in SUPPORTED
        and keyword not in _HARMLESS
    ]


def render_option(keyword: str, options: Mapping[str, tuple[str, ...]]) -> str:
    """Render an option as it stands in ssh_config: its name and value."""
    return f"{(LACKED | REFUSED).get(keyword, keyword)} {' '.join(options[keyword])}"


def parse_options(output: str) -> Options:
    """Parse what `ssh -G` prints."""
    options: dict[str, list[str]] = {}
    for line in output.splitlines():
        keyword, _, value = line.partition(" ")
        options.setdefault(keyword.lower(), []).append(value)
    return {keyword: tuple(values) for keyword, values in options.items()}
