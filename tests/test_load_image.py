"""Any picture to RGB: right pixels from every kind of source and mode, or one clear line."""

import base64
import io
import os
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import load_array
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms
from profiles import DISPLAY_P3, rgb_profile

from mlx_lfm2vl import Lfm2VlImageProcessor, Lfm2VlProcessor, load
from mlx_lfm2vl.config import ImageProcessorConfig
from mlx_lfm2vl.errors import ConfigError, ImageError, ImageWarning, OptionError
from mlx_lfm2vl.processing.fetch import fetch
from mlx_lfm2vl.processing.load_image import SourcePolicy, load_image
from mlx_lfm2vl.processing.open_file import decode_base64

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(RGB))


def message(picture, policy=None) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(picture, policy or SourcePolicy())
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestKinds:
    def test_every_kind_gives_the_same_pixels(self, tmp_path, monkeypatch):
        path = tmp_path / "with space é.png"
        path.write_bytes(PNG)
        uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
        plain = "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)
        monkeypatch.setenv("HOME", str(tmp_path))
        sources = [Image.fromarray(RGB), RGB, RGB.transpose(2, 0, 1), path, str(path), f"~/{path.name}"]
        for source in [*sources, PNG, bytearray(PNG), memoryview(PNG), uri, plain, uri[:40] + "\n" + uri[40:]]:
            np.testing.assert_array_equal(load_array(source), RGB)

    def test_an_rgb_image_is_not_copied(self):
        image = Image.fromarray(RGB)
        assert load_image(image) is image

    def test_jpeg_is_decoded_at_full_size(self):
        data = encoded(Image.fromarray(RNG.integers(0, 256, (600, 800, 3), dtype=np.uint8)), "JPEG", progressive=True)
        assert load_array(data).shape == (600, 800, 3)

    def test_bare_base64_for_chat_messages(self):
        assert decode_base64(base64.encodebytes(PNG).decode()) == PNG
        with pytest.raises(ImageError, match="not base64"):
            decode_base64("?? this is not ??")


class TestArrays:
    def test_grey_and_channel_first(self):
        grey = RGB[:, :, 0]
        expected = np.repeat(grey[:, :, None], 3, axis=2)
        for array in (grey, grey[:, :, None], grey[None]):
            np.testing.assert_array_equal(load_array(array), expected)

    def test_floats_are_rounded_to_8_bits(self):
        for dtype in (np.float16, np.float32, np.float64):
            array = RGB.astype(np.float64) / 255
            np.testing.assert_array_equal(load_array(array.astype(dtype)), RGB)
        assert load_array(np.full((2, 2), 1.0000001)).max() == 255

    def test_alpha_lies_on_white(self):
        rgba = np.zeros((1, 5, 4), np.uint8)
        rgba[0, :, 3] = (0, 128, 255, 0, 0)
        expected = [[255] * 3, [127] * 3, [0] * 3, [255] * 3, [255] * 3]
        assert load_array(rgba)[0].tolist() == expected
        assert load_array(rgba / 255)[0].tolist() == expected
        assert load_array(rgba.transpose(2, 0, 1))[0].tolist() == expected

    def test_where_both_readings_fit_the_last_axis_is_the_channels(self):
        array = RNG.integers(0, 256, (3, 7, 3), dtype=np.uint8)
        np.testing.assert_array_equal(load_array(array), array)

    def test_arrays_of_no_known_meaning_are_refused(self):
        assert "uint8 in 0..255 or floats in 0..1" in message(RGB.astype(np.int64))
        assert "0..1, these run from 0 to 255" in message(np.array([[0.0, 255.0]]))
        assert "from -1 to 1" in message(np.array([[-1.0, 1.0]]))
        assert "1 of its values is NaN" in message(np.array([[np.nan, 0.5]]))
        assert "1, 3 or 4 channels" in message(np.zeros((5, 5, 2), np.uint8))
        assert "is a batch of 2; give a list of its pictures" in message(np.zeros((2, 5, 5, 3), np.uint8))
        assert "nothing to see" in message(np.zeros((0, 5, 3), np.uint8))
        assert "more than 53 pixels" in message(RGB, SourcePolicy(max_pixels=53))

    def test_other_types_are_refused(self):
        for thing in (None, 3, object(), {"url": "x"}):
            assert type(thing).__name__ in message(thing)


class TestModes:
    def test_grey_bilevel_and_palette(self):
        grey = Image.fromarray(RGB[:, :, 0])
        assert (load_array(grey) == RGB[:, :, :1]).all()
        assert set(np.unique(load_array(grey.convert("1")))) == {0, 255}
        palette = Image.fromarray(RGB).quantize(200)
        np.testing.assert_array_equal(load_array(palette), np.asarray(palette.convert("RGB")))

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
    def test_transparent_pixels_are_white(self, mode):
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
        image.putpixel((1, 0), (0, 0, 0, 0))
        if mode == "La":
            image = image.convert("LA")
        assert load_array(image.convert(mode) if image.mode != mode else image)[0].tolist() == [[0] * 3, [255] * 3]

    def test_transparency_of_a_palette_colour_or_a_key(self):
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        for mode in ("L", "P", "RGB", "1"):
            converted = image.convert(mode)
            key = (0, 0, 0) if mode == "RGB" else 0
            data = encoded(converted, transparency=key)
            assert load_array(data)[0, 0].tolist() == [255] * 3, mode
        gif = encoded(Image.fromarray(RGB).quantize(50), "GIF", transparency=7)
        stored = Image.open(io.BytesIO(gif))
        transparent = np.asarray(stored) == stored.info["transparency"]
        assert transparent.any()
        assert (load_array(gif)[transparent] == 255).all()

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
    def test_16_bits_are_scaled(self, mode):
        values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
        order = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, (6, 1), values.astype(order).tobytes())
        assert load_array(image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]

    def test_16_bit_files(self):
        values = np.array([[0, 257, 65535]], np.uint16)
        for format in ("PNG", "TIFF"):
            assert load_array(encoded(Image.fromarray(values), format))[0, :, 1].tolist() == [0, 1, 255]

    def test_wide_modes_by_the_narrowest_range(self):
        def first_row(values, dtype):
            return load_array(Image.fromarray(np.array([values], dtype)))[0, :, 0].tolist()

        assert first_row([0, 200, 255], np.int32) == [0, 200, 255]
        assert first_row([0, 257, 65535], np.int32) == [0, 1, 255]
        assert first_row([0.0, 0.5, 1.0], np.float32) == [0, 128, 255]
        assert first_row([0.0, 99.6, 255.0], np.float32) == [0, 100, 255]
        assert "no known scale" in message(Image.fromarray(np.array([[-5, 5]], np.int32)))
        assert "no known scale" in message(Image.fromarray(np.array([[0, 1e9]], np.float32)))
        assert "1 of its values is NaN" in message(Image.fromarray(np.array([[0, np.nan]], np.float32)))

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX"])
    def test_other_colour_spaces(self, mode):
        colours = Image.fromarray(np.array([[(255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)]], np.uint8))
        assert np.abs(load_array(colours.convert(mode)).astype(int) - np.asarray(colours)).max() <= 2

    def test_lab(self):
        colours = Image.fromarray(np.array([[(200, 30, 40), (10, 120, 90), (255, 255, 255)]], np.uint8))
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(colours, srgb, lab, outputMode="LAB")
        assert np.abs(load_array(converted).astype(int) - np.asarray(colours)).max() <= 12  # 8-bit LAB is coarse

    def test_cmyk_jpeg(self):
        data = encoded(Image.new("RGB", (16, 16), (250, 10, 20)).convert("CMYK"), "JPEG", quality=95)
        assert np.abs(load_array(data).astype(int) - (250, 10, 20)).max() < 10


class TestContainers:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation, tmp_path):
        turned = {
            1: RGB,
            2: RGB[:, ::-1],
            3: RGB[::-1, ::-1],
            4: RGB[::-1],
            5: RGB.transpose(1, 0, 2),
            6: np.rot90(RGB, -1),
            7: np.rot90(RGB, 2).transpose(1, 0, 2),
            8: np.rot90(RGB),
        }[orientation]
        image = Image.fromarray(RGB)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(image, exif=exif)
        np.testing.assert_array_equal(load_array(data), turned)
        np.testing.assert_array_equal(load_array(Image.open(io.BytesIO(data))), turned)

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_picture_that_was_read_is_not_turned_again(self, format, mode):
        exif = Image.Exif()
        exif[0x0112] = 6
        once = load_image(encoded(Image.new(mode, (60, 40)), format, exif=exif))
        assert once.size == (40, 60)
        assert load_image(once) is once

    def test_exif_false_leaves_a_picture_as_an_app_turned_it(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        opened = Image.open(io.BytesIO(encoded(Image.new("RGB", (60, 40)), "JPEG", exif=exif)))
        turned = opened.rotate(-90, expand=True)
        assert load_image(turned).size == (60, 40)  # its tag still says that it lies
        assert load_image(turned, config=ImageProcessorConfig(exif=False)).size == (40, 60)
        grid = Lfm2VlImageProcessor()(turned, exif=False)["spatial_shapes"][0]
        assert grid[0] > grid[1]

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_of_several_frames_the_first(self, format):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        with pytest.warns(ImageWarning, match="only (its|the) first (frame )?is read"):
            np.testing.assert_array_equal(load_array(data)[0, 0], (255, 0, 0))

    @pytest.mark.parametrize("format", ["BMP", "PPM", "TGA", "ICO", "JPEG2000", "TIFF", "WEBP"])
    def test_lossless_formats(self, format):
        options = {"lossless": True} if format == "WEBP" else {}
        image = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        np.testing.assert_array_equal(load_array(encoded(image, format, **options)), np.asarray(image))

    @pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
    def test_extreme_shapes(self, size):
        assert load_array(encoded(Image.new("RGB", size, (1, 2, 3)))).shape == (size[1], size[0], 3)


class TestErrors:
    def test_files(self, tmp_path):
        (tmp_path / "empty.png").touch()
        (tmp_path / "text.png").write_text("this is text")
        (tmp_path / "short.png").write_bytes(PNG[: len(PNG) // 2])
        os.mkfifo(tmp_path / "pipe")
        assert message(tmp_path / "none.png") == f"{tmp_path}/none.png: no such picture"
        assert "empty" in message(tmp_path / "empty.png")
        assert "not a picture" in message(tmp_path / "text.png")
        assert "damaged or truncated" in message(tmp_path / "short.png")
        assert "is a directory" in message(tmp_path)
        assert "not a regular file" in message(tmp_path / "pipe")
        assert "not a regular file" in message("/dev/null")
        assert "empty" in message("")
        assert "too long for a path; base64" in message(base64.b64encode(bytes(5000)).decode())
        assert "cannot be opened" in message("nul\0byte.png")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert "cannot be opened" in message(tmp_path / "loop")

    def test_bytes_and_data_uris(self):
        assert "no bytes" in message(b"")
        assert "not a picture" in message(b"GIF89")
        assert "comma" in message("data:image/png;base64")
        assert "not base64" in message("data:image/png;base64,###")
        assert "no bytes" in message("data:,")
        assert "more than 10 bytes" in message("data:;base64," + "A" * 100, SourcePolicy(max_bytes=10))
        assert "more than 10 bytes" in message("data:," + "A" * 100, SourcePolicy(max_bytes=10))

    def test_too_many_pixels_are_refused_before_decoding(self):
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        for side in (12_300, 30_000):  # above ours, above Pillow's own limit
            header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
            bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
            assert "pixels" in message(bomb)
        assert "9x6 is more than 50 pixels" in message(PNG, SourcePolicy(max_pixels=50))
        assert "more than 50 pixels" in message(Image.new("RGB", (100, 100)), SourcePolicy(max_pixels=50))

    def test_100_megapixels_are_read_without_a_warning(self, recwarn):
        data = encoded(Image.new("L", (10_000, 10_000)), compress_level=1)
        assert load_image(data).size == (10_000, 10_000)
        assert not recwarn.list

    def test_postscript_is_not_run(self):
        assert "EPS is a program" in message(encoded(Image.fromarray(RGB), "EPS"))

    @pytest.mark.parametrize("missing", [b"\xff\xd9", b"\xd9"], ids=["marker", "half of it"])
    def test_an_opened_jpeg_may_lack_its_last_marker(self, missing, tmp_path):
        noise = Image.fromarray(RNG.integers(0, 256, (48, 40, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x112] = 6
        whole = encoded(noise, "JPEG", exif=exif)
        data = whole.removesuffix(missing)
        (tmp_path / "a.jpg").write_bytes(data)
        for source in (io.BytesIO(data), tmp_path / "a.jpg"):
            opened = Image.open(source)
            opened.info["mine"] = 1
            for _ in range(2):  # the caller's image is as it was
                np.testing.assert_array_equal(load_array(opened), load_array(whole))
            assert opened.info["mine"] == 1
        with pytest.raises(ImageError, match="PIL image RGB: damaged or truncated"):
            load_image(Image.open(io.BytesIO(data[:-40])))
        with Image.open(tmp_path / "a.jpg") as closed:
            pass
        with pytest.raises(ImageError, match="damaged or truncated"):
            load_image(closed)

    def test_policy(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(PNG)
        closed = SourcePolicy(allow_urls=False, allow_paths=False)
        assert "paths are not allowed" in message(path, closed)
        assert "paths are not allowed" in message("/no/such/file", closed)
        assert "URLs are not allowed" in message("https://example.com/a.png", closed)
        assert "paths are not allowed" in message(f"file://{path}", closed)
        assert "paths are not allowed" in message(f"file:{path}", closed)
        assert load_image(PNG, closed).size == (9, 6)
        assert load_image("data:;base64," + base64.b64encode(PNG).decode(), closed).size == (9, 6)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_give_a_picture_or_an_image_error(data):
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
    original = bytearray(encoded(Image.fromarray(RGB), format))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    del original[data.draw(st.integers(1, len(original))) :]
    try:
        array = load_array(bytes(original), SourcePolicy(max_pixels=1_000_000))
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8


class _Pictures(BaseHTTPRequestHandler):
    """Answers by path; /redirect/N redirects N times."""

    def do_GET(self):
        path = self.path
        if path == "/picture.png":
            self.answer(PNG)
        elif path.startswith("/redirect/"):
            left = int(path.rsplit("/", 1)[1])
            self.send_response(302)
            self.send_header("Location", f"/redirect/{left - 1}" if left > 1 else "/picture.png")
            self.end_headers()
        elif path == "/to-file":
            self.send_response(301)
            self.send_header("Location", f"file://{Path(__file__)}")
            self.end_headers()
        elif path == "/host":
            self.answer(self.headers["Host"].encode())
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(10_000))
            except OSError:
                pass
        elif path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(400):
                try:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                except OSError:
                    break
                time.sleep(0.05)
        elif path == "/silent":
            time.sleep(1.5)
        elif path == "/text":
            self.answer(b"<html>not a picture</html>")
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(PNG[:20])
        else:
            self.send_error(404)

    def answer(self, body: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


OPEN = SourcePolicy(allow_private_addresses=True, timeout=60)


class TestUrls:
    def test_fetches_and_follows_a_few_redirects(self, server):
        for path in ("/picture.png", "/redirect/1", "/redirect/5"):
            np.testing.assert_array_equal(load_array(server + path, OPEN), RGB)
        localhost = server.replace("127.0.0.1", "localhost")
        np.testing.assert_array_equal(load_array(localhost + "/picture.png#part", OPEN), RGB)

    def test_too_many_redirects_and_other_schemes(self, server):
        assert "more than 5 redirects" in message(server + "/redirect/6", OPEN)
        assert "only http and https are followed, not file:///" in message(server + "/to-file", OPEN)

    def test_what_servers_do_wrong(self, server):
        assert "answered 404" in message(server + "/nothing", OPEN)
        assert "not a picture but a web page" in message(server + "/text", OPEN)
        assert "cannot be fetched" in message(server + "/cut", OPEN)
        assert "cannot be fetched" in message(server + "/silent", SourcePolicy(allow_private_addresses=True, timeout=9))

    def test_size_and_time_are_limited_while_streaming(self, server):
        limited = SourcePolicy(allow_private_addresses=True, max_bytes=100_000, timeout=60)
        assert "more than 100000 bytes" in message(server + "/endless", limited)
        hasty = SourcePolicy(allow_private_addresses=True, timeout=0.3)
        assert "within 0.3 seconds" in message(server + "/slow", hasty)
        assert "within 0.3 seconds" in message(server + "/silent", hasty)

    def test_nobody_listens(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert "cannot be fetched" in message(f"http://127.0.0.1:{port}/a.png", OPEN)

    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
            *(
                "100.64.0.1",
                "2130706433",
                "127.1",
                "0x7f.1",
                "[::ffff:127.0.0.1]",
                "[fe80::1]",
                "[fd00::1]",
                "224.0.0.1",
            ),
        ],
    )
    def test_private_addresses_are_refused(self, host):
        text = message(f"http://{host}:9/a.png", SourcePolicy(timeout=1))
        assert "private address" in text or "is not found" in text

    @pytest.mark.parametrize(
        "url", ["http://", "http:///a.png", "http://host:99999999/a", "https://exa mple/", "http:a"]
    )
    def test_malformed_urls(self, url):
        message(url, SourcePolicy(timeout=1))

    def test_the_host_name_is_sent(self, server):
        localhost = server.replace("127.0.0.1", "localhost")
        assert fetch(localhost + "/host", OPEN).decode() == localhost.removeprefix("http://")


@pytest.mark.parametrize("name", ["allow_urls", "allow_paths", "allow_private_addresses"])
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_policy_takes_true_and_false_only(name, value):
    with pytest.raises(OptionError, match=f"{name} is {value!r}, expected True or False"):
        SourcePolicy(**{name: value})


@pytest.mark.parametrize("policy", [{"allow_urls": False}, None, SourcePolicy])
def test_what_is_no_policy_is_refused_at_once(policy):
    for loader in (load, Lfm2VlProcessor.from_pretrained):
        with pytest.raises(OptionError, match=f"source_policy is {type(policy).__name__}, expected a SourcePolicy"):
            loader("demo", source_policy=policy)


def test_load_image_takes_the_fields_that_hold_for_it():
    turned = Image.fromarray(RGB)
    turned.getexif()[ExifTags.Base.Orientation] = 6
    np.testing.assert_array_equal(np.asarray(load_image(turned)), np.rot90(RGB, -1))
    assert load_image(turned, exif=False) is turned
    turned.info["icc_profile"] = rgb_profile(DISPLAY_P3)
    assert np.abs(np.asarray(load_image(turned, exif=False)).astype(int) - RGB).max() > 8
    assert load_image(turned, exif=False, color_management=False) is turned
    with pytest.raises(ConfigError, match="exif"):
        load_image(turned, exif="no")  # type: ignore[arg-type]
