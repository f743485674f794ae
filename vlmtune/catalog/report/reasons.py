"""What the reason codes of the ledger mean, in plain words, and what to do about them."""

# Reason code -> (what it means, what to do about it).
MEANINGS = {
    "missing_text": ("a text is missing", "fill in the field"),
    "text_too_short": ("a text is too short", "write more, or lower min_length"),
    "text_too_long": ("a text is too long", "shorten it, or raise max_length"),
    "not_allowed": ("a value is not on the list", "correct the value, or add it to allowed"),
    "banned_phrase": ("a text has a banned phrase", "reword the text"),
    "pattern_not_found": ("a text lacks the pattern asked for", "correct the text or the pattern"),
    "wrong_language": ("a text is in another language", "translate it, or add the language"),
    "picture_too_small": ("a picture is too small", "give a larger picture, or lower min_side"),
    "too_many_pictures": ("too many pictures", "remove some, or raise max_count"),
    "missing_picture": ("no picture is named", "name a picture"),
    "picture_outside_folder": (
        "a picture lies outside the catalog's folder",
        "move it into the folder",
    ),
    "picture_not_found": ("a picture file is not there", "add the file, or correct its name"),
    "picture_unreadable": ("a picture cannot be read", "save the picture again"),
    "picture_too_large": ("a picture has too many pixels or bytes", "give a smaller picture"),
    "download_failed": ("a picture could not be downloaded", "check the address, then run again"),
    "ragged_row": (
        "the row has more or fewer cells than the header",
        "check separators and quotes of the row",
    ),
    "broken_json": ("the line is not valid JSON", "correct the line"),
    "control_token": (
        "a text has a control word of the model",
        "remove the word, as <|im_start|>, from the text",
    ),
    "too_many_tokens": (
        "the row is too long for the model",
        "shorten it, use a smaller picture, or raise max_tokens",
    ),
    "processor_refused": (
        "the model's processor refused the row",
        "see the message; often the picture's shape is the cause",
    ),
    "split_conflict": (
        "the row would join training and held-out products",
        "give the row a picture, a name and a description of its own",
    ),
    "exact_copy": ("the row is an exact copy of another and counts once", ""),
    "html_removed": ("HTML was removed from a text", ""),
    "entities_decoded": ("HTML entities became characters", ""),
    "unicode_normalised": ("characters were brought to one form", ""),
    "control_characters_removed": ("invisible control characters were removed", ""),
    "picture_rotated": ("a picture was turned upright", ""),
    "alpha_flattened": ("a transparent picture was laid on the background", ""),
    "colours_converted": ("a picture's colours were converted to RGB", ""),
    "first_frame_taken": ("of an animation the first frame was taken", ""),
}


def reason_meaning(code: str) -> str:
    """A reason code in plain words."""
    return MEANINGS.get(code, (code.replace("_", " "), ""))[0]


def reason_mend(code: str) -> str:
    """What to do about a reason."""
    return MEANINGS.get(code, ("", "see the message"))[1]
