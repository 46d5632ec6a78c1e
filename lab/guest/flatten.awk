# Flatten JSON to lines "path<TAB>value": files.0.path<TAB>/etc/motd. For documents as small as a
# config drive's. Escapes other than \" \\ \/ \n \t \uXXXX do not occur there.
function fail() { exit 1 }
function unquote(text,    out, at, code) {
    if (index(text, "\\") == 0) return text
    out = ""
    while ((at = index(text, "\\")) > 0) {
        out = out substr(text, 1, at - 1)
        code = substr(text, at + 1, 1)
        if (code == "n") out = out "\n"
        else if (code == "t") out = out "\t"
        else if (code == "u") { out = out utf8(substr(text, at + 2, 4)); at += 4 }
        else out = out code
        text = substr(text, at + 2)
    }
    return out text
}
function hex(text,    value, i) {
    value = 0
    for (i = 1; i <= length(text); i++)
        value = value * 16 + index("0123456789abcdef", tolower(substr(text, i, 1))) - 1
    return value
}
function utf8(text,    code) {
    code = hex(text)
    if (code < 128) return sprintf("%c", code)
    if (code < 2048) return sprintf("%c%c", 192 + int(code / 64), 128 + code % 64)
    return sprintf("%c%c%c", 224 + int(code / 4096), 128 + int(code / 64) % 64, 128 + code % 64)
}
function skip() { sub(/^[ \t\n\r]+/, "", rest) }
function string(    text) {
    if (!match(rest, /^"([^"\\]|\\.)*"/)) fail()
    text = substr(rest, 2, RLENGTH - 2)
    rest = substr(rest, RLENGTH + 1)
    return unquote(text)
}
function value(path,    key, count, text) {
    skip()
    if (rest ~ /^"/) { text = string(); print path "\t" text; return }
    if (rest ~ /^[{]/) {
        rest = substr(rest, 2); skip()
        while (rest !~ /^[}]/) {
            key = string(); skip(); rest = substr(rest, 2)
            value(path == "" ? key : path "." key)
            skip(); if (rest ~ /^,/) rest = substr(rest, 2); skip()
        }
        rest = substr(rest, 2); return
    }
    if (rest ~ /^\[/) {
        rest = substr(rest, 2); skip(); count = 0
        while (rest !~ /^\]/) {
            value(path "." count++)
            skip(); if (rest ~ /^,/) rest = substr(rest, 2); skip()
        }
        rest = substr(rest, 2); return
    }
    if (!match(rest, /^[-+.a-zA-Z0-9]+/)) fail()
    print path "\t" substr(rest, 1, RLENGTH)
    rest = substr(rest, RLENGTH + 1)
}
rest == "" && /^#/ { next } # the header of cloud-config
{ rest = rest $0 "\n" }
END { value("") }
