// ------------------------------------------------------ a file -> a photo's pixels

// What is decoded at most, of what is kept for the network the longer side, and for the screen.
const MOST_BYTES = 200e6, MOST_PIXELS = 100e6, NETWORK_SIDE = 4096, SCREEN_SIDE = 960;

// Width and height as the file's head tells them, before anything is decoded; null where it does not.
function measure(b) {
  const at = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const text = (from, to) => String.fromCharCode(...b.subarray(from, to));
  if (text(1, 4) === "PNG") return [at.getUint32(16), at.getUint32(20)];
  if (text(0, 3) === "GIF") return [at.getUint16(6, true), at.getUint16(8, true)];
  if (text(0, 2) === "BM") return [at.getInt32(18, true), Math.abs(at.getInt32(22, true))];
  if (text(8, 16) === "WEBPVP8X") return [24, 27].map(i => 1 + at.getUint16(i, true) + (b[i + 2] << 16));
  if (text(8, 16) === "WEBPVP8 ") return [26, 28].map(i => at.getUint16(i, true) & 0x3fff);
  if (text(8, 16) === "WEBPVP8L") return [0, 14].map(bit => 1 + (at.getUint32(21, true) >> bit & 0x3fff));
  if (text(4, 12) === "ftypavif") {          // the largest of the sizes in it
    const sizes = [...text(0, 4096).matchAll(/ispe/g)].map(({index}) => [8, 12].map(i => at.getUint32(index + i)));
    return sizes.sort(([w, h], [v, g]) => v * g - w * h)[0] ?? null;
  }
  if (b[0] === 0xff && b[1] === 0xd8) {      // JPEG: from marker to marker, to the start of a frame
    for (let i = 2; i + 9 < b.length && b[i] === 0xff;) {
      const marker = b[i + 1];
      if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
        return [at.getUint16(i + 7), at.getUint16(i + 5)];
      }
      i += marker === 0xff ? 1 : 2 + at.getUint16(i + 2);
    }
  }
  return null;
}

// The image on white, its longer side at most `most` pixels.
function scaled(image, most) {
  const scale = Math.min(1, most / Math.max(image.width, image.height));
  const [width, height] = [image.width, image.height].map(side => Math.max(1, Math.round(side * scale)));
  const canvas = el("canvas", {width, height}), context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return canvas;
}

// File -> {canvas for the screen, rgb, width, height for the network}; throws a sentence as a string.
async function decode(blob, name) {
  if (!blob.size) throw `${name} is empty.`;
  if (blob.size > MOST_BYTES) {
    throw `${name} has ${Math.round(blob.size / 1e6)} MB; at most ${MOST_BYTES / 1e6} MB can be opened here.`;
  }
  const head = new Uint8Array(await blob.slice(0, 4e6).arrayBuffer());
  const [w, h] = head.length > 40 && measure(head) || [0, 0];
  if (w * h > MOST_PIXELS) throw `${name} has ${w} × ${h} pixels, too many to open here; make it smaller first.`;
  let image;
  try {
    image = await createImageBitmap(blob, {colorSpaceConversion: "none"});    // as Pillow; turned as EXIF says
  } catch {
    throw `${name} is no photo that this browser can read; try a JPEG, PNG or WebP file.`;
  }
  if (image.width * image.height > MOST_PIXELS) throw `${name} has too many pixels to open here.`;
  const large = scaled(image, NETWORK_SIDE), {width, height} = large;
  const rgba = large.getContext("2d").getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    rgb[i] = rgba[j]; rgb[i + 1] = rgba[j + 1]; rgb[i + 2] = rgba[j + 2];
  }
  const canvas = scaled(image, SCREEN_SIDE);
  image.close();
  return {canvas, rgb, width, height};
}
