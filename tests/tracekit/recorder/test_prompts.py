import json

import pytest

from tracekit.errors import ImportFormatError
from tracekit.recorder.prompts import Message, Prompt, encode_prompts, prompts_digest, read_prompts


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_reads_both_forms_in_order_and_skips_blank_lines(tmp_path):
    path = write(
        tmp_path,
        '\ufeff{"id": "a", "prompt": "w1 w2"}',
        "  ",
        '{"messages": [{"role": "user", "content": "w3"}], "id": 7}\r',
    )
    assert read_prompts(path) == [
        Prompt(id="a", prompt="w1 w2"),
        Prompt(id=7, messages=(Message(role="user", content="w3"),)),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "line 2 is not JSON"),
        ('{"id": "b", "prompt": "x"', "line 2 is not JSON"),
        ("[1, 2]", "line 2 is not a prompt"),
        ('{"prompt": "x"}', "line 2 is not a prompt.*`id`"),
        ('{"id": "b"}', 'line 2 needs either "prompt" or "messages"'),
        ('{"id": "b", "prompt": "x", "messages": []}', "line 2 needs either"),
        ('{"id": "b", "prompt": ""}', "line 2 is empty"),
        ('{"id": "b", "messages": []}', "line 2 is empty"),
        ('{"id": "b", "prompt": 3}', "line 2 is not a prompt"),
        ('{"id": "b", "prompt": "x", "max_tokens": 3}', "line 2 is not a prompt.*max_tokens"),
        ('{"id": "b", "messages": [{"role": "user"}]}', "line 2 is not a prompt.*content"),
        (
            '{"id": "b", "messages": [{"role": "user", "content": [{"type": "image"}]}]}',
            "line 2 is not a prompt",
        ),
        ('{"id": "a", "prompt": "x"}', "line 2: id 'a' is that of line 1"),
        (b'{"id": "b", "prompt": "\xff\xfe"}', "line 2 is not"),
        ('{"id": "b", "prompt": "\\ud800"}', r"line 2 holds \\ud800, one half of a surrogate pair"),
        ("[" * 100_000, "line 2 is not"),
        (b"\x00\x01\x02", "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path, line, why):
    path = write(tmp_path, '{"id": "a", "prompt": "w1"}', line)
    with pytest.raises(ImportFormatError, match=why) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)
    assert "prompts.jsonl" in str(caught.value)


def test_an_id_is_the_same_as_text_or_number(tmp_path):
    with pytest.raises(ImportFormatError, match="line 2: id '1' is that of line 1"):
        read_prompts(write(tmp_path, '{"id": "1", "prompt": "x"}', '{"id": 1, "prompt": "x"}'))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_no_prompts_is_an_error(tmp_path, content):
    with pytest.raises(ImportFormatError, match="holds no prompts"):
        read_prompts(write(tmp_path, content))


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(ImportFormatError, match="does not exist"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(ImportFormatError, match="not a file"):
        read_prompts(tmp_path)


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tracekit.recorder.prompts.MAX_LINE_BYTES", 100)
    with pytest.raises(ImportFormatError, match="line 1 is longer than"):
        read_prompts(write(tmp_path, json.dumps({"id": "a", "prompt": "x" * 200})))


def test_digest_is_of_the_content(tmp_path):
    one = read_prompts(write(tmp_path, '{"id": "a", "prompt": "w1"}'))
    same = read_prompts(write(tmp_path, "", '{ "prompt":"\\u00771",  "id":"a" }'))
    other = read_prompts(write(tmp_path, '{"id": "a", "prompt": "w2"}'))
    assert prompts_digest(one) == prompts_digest(same) != prompts_digest(other)
    assert prompts_digest([*one, *other]) != prompts_digest([*other, *one])


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
    "{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}w60{% endif %}"
)


def test_messages_go_through_the_chat_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    chat = Prompt(id="a", messages=(Message(role="w5", content="w6 w7"),))
    assert encode_prompts([chat], tokenizer) == [[7, 8, 9, 62]]
    assert encode_prompts([chat], tokenizer, generating=False) == [[7, 8, 9]]


def test_what_cannot_be_encoded_is_named(tokenizer, monkeypatch):
    chat = Prompt(id="talk", messages=(Message(role="critic", content="w6"),))
    with pytest.raises(ImportFormatError, match=r"'talk'.*no chat template"):
        encode_prompts([chat], tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    with pytest.raises(ImportFormatError, match="'talk' cannot be encoded: no critics"):
        encode_prompts([chat], tokenizer)
    with pytest.raises(ImportFormatError, match="'blank' encodes to no tokens"):
        encode_prompts([Prompt(id="blank", prompt="   ")], tokenizer)
