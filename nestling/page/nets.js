// The networks that export.py writes, in plain JavaScript: for the page, for a worker made of this text, for node.
//   Nets.bird(exported)  {classes, size, stored, squash(rgb, width, height), look(rgb), predict(rgb)}, of which
//                        the last two take what `squash` makes: stored x stored pixels, RGB RGB ...
//   Nets.vae(exported)   {encode(x), decode(z), mixture: {digits, weights, means, covariances,
//                         responsibilities(z)}}
//   Nets.asMnist(ink, side)  a drawing as MNIST would show it
// A map is {data: Float32Array, channels, height, width}, channel by channel, row by row. The loops are plain
// ones over typed arrays: closures would cost more than the products.
"use strict";
var Nets = (() => {
  // ------------------------------------------------------ tensors from text

  function bytesOf(text) {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  function tensor({dtype, base64}) {         // of 16-bit integers or of floats
    const {buffer} = bytesOf(base64);
    return dtype === "<i2" ? Float32Array.from(new Int16Array(buffer)) : new Float32Array(buffer);
  }

  function unpack(layers) {                  // the layers with Float32Arrays in the place of text
    return layers.map(layer => {
      const made = {...layer, shape: layer.weight?.shape};
      for (const [name, value] of Object.entries(layer)) {
        if (Array.isArray(value)) made[name] = unpack(value);
        else if (value?.base64 !== undefined) made[name] = tensor(value);
      }
      if (made.unit) {                       // of each row of the weight
        const width = made.weight.length / made.unit.length;
        for (let o = 0, i = 0; o < made.unit.length; o++) {
          for (const end = i + width; i < end; i++) made.weight[i] *= made.unit[o];
        }
      }
      return made;
    });
  }

  function check({version}) {
    if (version !== 1) throw new Error(`the models are of version ${version}, and this page knows version 1`);
  }

  // ------------------------------------------------------ layers

  const emptyMap = (channels, height, width) =>
    ({data: new Float32Array(channels * height * width), channels, height, width});

  // Zeros around each channel: `pad` of them, and to the right as many more as make `width` columns.
  function padded(x, pad, width) {
    const height = x.height + 2 * pad, out = emptyMap(x.channels, height, width);
    for (let c = 0; c < x.channels; c++) {
      for (let y = 0; y < x.height; y++) {
        const from = (c * x.height + y) * x.width;
        out.data.set(x.data.subarray(from, from + x.width), (c * height + y + pad) * width + pad);
      }
    }
    return out;
  }

  function conv(x, layer) {
    const [outputs, inputs, size] = layer.shape, {stride} = layer, pad = size >> 1;
    const height = Math.floor((x.height + 2 * pad - size) / stride) + 1;
    const width = Math.floor((x.width + 2 * pad - size) / stride) + 1;
    const out = emptyMap(outputs, height, width);
    if (size === 3 && stride === 1) conv3(padded(x, 1, 4 * Math.ceil(width / 4) + 2), layer, out, inputs);
    else convAny(padded(x, pad, x.width + 2 * pad), layer, out, inputs, size, stride);
    return out;
  }

  // 3 x 3: two channels and four columns at a time, so that each number read serves several products.
  function conv3(from, {weight, bias}, {data: out, channels, height, width}, inputs) {
    const {data: source, width: row} = from, plane = from.height * row, skip = plane - 3 * row;
    for (let o = 0; o < channels; o += 2) {
      const o2 = o + 1 < channels ? o + 1 : o, first = bias[o], second = bias[o2];
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x += 4) {
          let a0 = first, a1 = first, a2 = first, a3 = first, b0 = second, b1 = second, b2 = second, b3 = second;
          let p = y * row + x, k = o * inputs * 9, l = o2 * inputs * 9;
          for (let c = 0; c < inputs; c++) {
            for (let i = 0; i < 3; i++) {
              const s0 = source[p], s1 = source[p + 1], s2 = source[p + 2];
              const s3 = source[p + 3], s4 = source[p + 4], s5 = source[p + 5];
              let u = weight[k], v = weight[l];
              a0 += u * s0; a1 += u * s1; a2 += u * s2; a3 += u * s3;
              b0 += v * s0; b1 += v * s1; b2 += v * s2; b3 += v * s3;
              u = weight[k + 1]; v = weight[l + 1];
              a0 += u * s1; a1 += u * s2; a2 += u * s3; a3 += u * s4;
              b0 += v * s1; b1 += v * s2; b2 += v * s3; b3 += v * s4;
              u = weight[k + 2]; v = weight[l + 2];
              a0 += u * s2; a1 += u * s3; a2 += u * s4; a3 += u * s5;
              b0 += v * s2; b1 += v * s3; b2 += v * s4; b3 += v * s5;
              p += row; k += 3; l += 3;
            }
            p += skip;
          }
          const n = Math.min(4, width - x);
          const at = (o * height + y) * width + x, at2 = (o2 * height + y) * width + x;
          out[at] = a0; out[at2] = b0;
          if (n > 1) { out[at + 1] = a1; out[at2 + 1] = b1; }
          if (n > 2) { out[at + 2] = a2; out[at2 + 2] = b2; }
          if (n > 3) { out[at + 3] = a3; out[at2 + 3] = b3; }
        }
      }
    }
  }

  // Any size and stride: two channels and two columns at a time.
  function convAny(from, {weight, bias}, {data: out, channels, height, width}, inputs, size, stride) {
    const {data: source, width: row} = from, plane = from.height * row, taps = inputs * size * size;
    for (let o = 0; o < channels; o += 2) {
      const o2 = o + 1 < channels ? o + 1 : o;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x += 2) {
          const x2 = x + 1 < width ? x + 1 : x, step = (x2 - x) * stride;
          let a0 = bias[o], a1 = a0, b0 = bias[o2], b1 = b0, k = o * taps, l = o2 * taps;
          for (let c = 0; c < inputs; c++) {
            for (let i = 0; i < size; i++) {
              let p = c * plane + (y * stride + i) * row + x * stride;
              for (let j = 0; j < size; j++) {
                const u = weight[k++], v = weight[l++], s = source[p], t = source[p + step];
                a0 += u * s; a1 += u * t; b0 += v * s; b1 += v * t;
                p++;
              }
            }
          }
          const at = (o * height + y) * width, at2 = (o2 * height + y) * width;
          out[at + x] = a0; out[at + x2] = a1; out[at2 + x] = b0; out[at2 + x2] = b1;
        }
      }
    }
  }

  function linear(x, {weight, bias}) {       // four outputs at a time
    const n = x.data.length, outputs = bias.length, out = emptyMap(outputs, 1, 1), source = x.data;
    for (let o = 0; o < outputs; o += 4) {
      const rows = Math.min(4, outputs - o), k = o * n;
      const [l, m, q] = [1, 2, 3].map(i => k + n * Math.min(i, rows - 1));
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < n; i++) {
        const s = source[i];
        a += weight[k + i] * s; b += weight[l + i] * s; c += weight[m + i] * s; d += weight[q + i] * s;
      }
      out.data[o] = a + bias[o];
      if (rows > 1) out.data[o + 1] = b + bias[o + 1];
      if (rows > 2) out.data[o + 2] = c + bias[o + 2];
      if (rows > 3) out.data[o + 3] = d + bias[o + 3];
    }
    return out;
  }

  // Squares of 2 x 2: their maxima, or the means of what there is of them.
  function pool(x, mean) {
    const round = mean ? Math.ceil : Math.floor, {data, height, width} = x;
    const out = emptyMap(x.channels, round(height / 2), round(width / 2));
    let at = 0;
    for (let c = 0; c < x.channels; c++) {
      for (let y = 0; y < 2 * out.height; y += 2) {
        for (let x2 = 0; x2 < 2 * out.width; x2 += 2) {
          const y1 = Math.min(y + 1, height - 1), x1 = Math.min(x2 + 1, width - 1), plane = c * height * width;
          const a = data[plane + y * width + x2], b = data[plane + y * width + x1];
          const d = data[plane + y1 * width + x2], e = data[plane + y1 * width + x1];
          out.data[at++] = mean ? (a + b + d + e) / 4 : Math.max(a, b, d, e);      // the edge twice: same mean
        }
      }
    }
    return out;
  }

  function affine(x, {weight, bias}) {
    const out = emptyMap(x.channels, x.height, x.width), n = x.height * x.width;
    for (let c = 0, i = 0; c < x.channels; c++) {
      for (const end = i + n; i < end; i++) out.data[i] = weight[c] * x.data[i] + bias[c];
    }
    return out;
  }

  function layerNorm(x, {weight, bias, eps}) {
    const n = x.data.length, out = emptyMap(n, 1, 1);
    let mean = 0, variance = 0;
    for (let i = 0; i < n; i++) mean += x.data[i] / n;
    for (let i = 0; i < n; i++) variance += (x.data[i] - mean) ** 2 / n;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < n; i++) out.data[i] = (x.data[i] - mean) * scale * weight[i] + bias[i];
    return out;
  }

  const sigmoid = value => 1 / (1 + Math.exp(-value));

  function activation(x, type) {
    const out = {...x, data: x.data.slice()}, {data} = out;
    if (type === "relu") for (let i = 0; i < data.length; i++) { if (data[i] < 0) data[i] = 0; }
    if (type === "sigmoid") for (let i = 0; i < data.length; i++) data[i] = sigmoid(data[i]);
    if (type === "silu") for (let i = 0; i < data.length; i++) data[i] *= sigmoid(data[i]);
    return out;
  }

  // relu(shortcut(x) + body(x) times se of its channels' means)
  function block(x, layer) {
    const h = run(layer.body, x), shortcut = run(layer.shortcut, x), out = {...h, data: h.data.slice()};
    const n = h.height * h.width, scale = layer.se.length ? run(layer.se, vector(means(h))).data : null;
    for (let c = 0, i = 0; c < h.channels; c++) {
      for (const end = i + n, by = scale ? scale[c] : 1; i < end; i++) {
        out.data[i] = Math.max(0, shortcut.data[i] + by * h.data[i]);
      }
    }
    return out;
  }

  function residual(x, layer) {              // x + body(x)
    const out = run(layer.body, x);
    for (let i = 0; i < out.data.length; i++) out.data[i] += x.data[i];
    return out;
  }

  function run(layers, x) {
    for (const layer of layers) {
      const {type} = layer;
      if (type === "conv") x = conv(x, layer);
      else if (type === "linear") x = linear(x, layer);
      else if (type === "affine") x = affine(x, layer);
      else if (type === "layernorm") x = layerNorm(x, layer);
      else if (type === "maxpool" || type === "avgpool") x = pool(x, type === "avgpool");
      else if (type === "relu" || type === "silu" || type === "sigmoid") x = activation(x, type);
      else if (type === "block") x = block(x, layer);
      else if (type === "residual") x = residual(x, layer);
      else throw new Error(`unknown layer ${type}`);
    }
    return x;
  }

  const vector = data => ({data, channels: data.length, height: 1, width: 1});

  function means({data, channels, height, width}) {
    const n = height * width, out = new Float32Array(channels);
    for (let c = 0, i = 0; c < channels; c++) {
      let sum = 0;
      for (const end = i + n; i < end; i++) sum += data[i];
      out[c] = sum / n;
    }
    return out;
  }

  function maxima({data, channels, height, width}) {
    const n = height * width, out = new Float32Array(channels).fill(-Infinity);
    for (let c = 0, i = 0; c < channels; c++) {
      for (const end = i + n; i < end; i++) if (data[i] > out[c]) out[c] = data[i];
    }
    return out;
  }

  function softmax(logits) {
    const most = Math.max(...logits), e = logits.map(value => Math.exp(value - most));
    const sum = e.reduce((a, b) => a + b);
    return e.map(value => value / sum);
  }

  // ------------------------------------------------------ photos: {data: Uint8Array, width, height}, RGB RGB ...

  // Means of blocks of fx x fy pixels, those at the right and lower edge smaller: as Pillow's `reduce`.
  function reduce({data, width, height}, fx, fy) {
    const w = Math.ceil(width / fx), h = Math.ceil(height / fy);
    const out = new Uint8Array(3 * w * h), sums = new Float64Array(3 * w);
    for (let y = 0; y < h; y++) {
      const bottom = Math.min(height, (y + 1) * fy);
      sums.fill(0);
      for (let v = y * fy; v < bottom; v++) {
        for (let x = 0, i = 3 * v * width; x < w; x++) {
          for (const end = 3 * (v * width + Math.min(width, (x + 1) * fx)); i < end; i += 3) {
            sums[3 * x] += data[i]; sums[3 * x + 1] += data[i + 1]; sums[3 * x + 2] += data[i + 2];
          }
        }
      }
      for (let x = 0; x < w; x++) {
        const n = (bottom - y * fy) * (Math.min(width, (x + 1) * fx) - x * fx);
        for (let c = 0; c < 3; c++) out[3 * (y * w + x) + c] = Math.floor(sums[3 * x + c] / n + 0.5);
      }
    }
    return {data: out, width: w, height: h};
  }

  // Of `from` pixels, of which `span` count, to `to`: where each one's sources begin, and their weights, rounded
  // to `bits` bits as in Pillow (22) and torch (0: as many as an int16 holds): so the pixels come out the same.
  function triangles(from, to, span, bits) {
    const scale = span / to, support = Math.max(scale, 1), most = Math.ceil(2 * support) + 1;
    const starts = new Int32Array(to), counts = new Int32Array(to), weights = new Float64Array(to * most);
    for (let i = 0; i < to; i++) {
      const centre = (i + 0.5) * scale, first = Math.max(0, Math.floor(centre - support + 0.5));
      const n = Math.min(from, Math.floor(centre + support + 0.5)) - first;
      let sum = 0;
      for (let j = 0; j < n; j++) {
        const weight = Math.max(0, 1 - Math.abs(first + j + 0.5 - centre) / support);
        weights[i * most + j] = weight;
        sum += weight;
      }
      for (let j = 0; j < n; j++) weights[i * most + j] /= sum;
      starts[i] = first; counts[i] = n;
    }
    const largest = weights.reduce((a, b) => Math.max(a, b));
    bits ||= Math.min(22, Math.ceil(Math.log2(32767.5 / largest)) - 1);
    for (let i = 0; i < weights.length; i++) weights[i] = Math.floor(weights[i] * 2 ** bits + 0.5) / 2 ** bits;
    return {starts, counts, weights, most};
  }

  // Antialiased bilinear, rounded after each direction.
  function resize({data, width, height}, size, spanX = width, spanY = height, bits = 0) {
    if (width === size && height === size) return {data, width, height};
    const across = triangles(width, size, spanX, bits), down = triangles(height, size, spanY, bits);
    const wide = new Uint8Array(3 * size * height), out = new Uint8Array(3 * size * size);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < size; x++) {
        let r = 0.5, g = 0.5, b = 0.5, p = 3 * (y * width + across.starts[x]);
        for (let j = x * across.most, end = j + across.counts[x]; j < end; j++, p += 3) {
          const w = across.weights[j];
          r += w * data[p]; g += w * data[p + 1]; b += w * data[p + 2];
        }
        const at = 3 * (y * size + x);
        wide[at] = Math.min(255, r); wide[at + 1] = Math.min(255, g); wide[at + 2] = Math.min(255, b);
      }
    }
    for (let y = 0; y < size; y++) {
      for (let at = 3 * y * size, x = 0; x < 3 * size; x++) {
        let sum = 0.5, p = 3 * down.starts[y] * size + x;
        for (let j = y * down.most, end = j + down.counts[y]; j < end; j++, p += 3 * size) {
          sum += down.weights[j] * wide[p];
        }
        out[at + x] = Math.min(255, sum);
      }
    }
    return {data: out, width: size, height: size};
  }

  // To a square, as bird.decode does: by blocks first where the photo is far larger.
  function squash(rgb, width, height, size) {
    const fx = Math.floor(width / size / 2) || 1, fy = Math.floor(height / size / 2) || 1;
    const photo = {data: rgb, width, height}, small = fx > 1 || fy > 1 ? reduce(photo, fx, fy) : photo;
    return resize(small, size, width / fx, height / fy, 22);
  }

  function withoutEdges({data, width}, edge) {           // of a square
    const side = width - 2 * edge, out = new Uint8Array(3 * side * side);
    for (let y = 0; y < side; y++) {
      const from = 3 * ((y + edge) * width + edge);
      out.set(data.subarray(from, from + 3 * side), 3 * y * side);
    }
    return {data: out, width: side, height: side};
  }

  function asMap({data, width, height}) {                // in 0..1
    const out = emptyMap(3, height, width), n = width * height;
    for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) out.data[c * n + i] = data[3 * i + c] / 255;
    return out;
  }

  // A square of 0.7 of the side about `centre`, x and y in -0.3..0.3 of -1..1. It lies within the picture, so
  // that bird.crop's reflection never does more than repeat the outermost pixels.
  function close({data, width: side}, [cx, cy], size) {
    const out = emptyMap(3, size, size), n = size * size;
    const place = (i, c) => {
      const at = Math.min(side - 1, Math.max(0, (side * (0.7 * ((2 * i + 1) / size - 1) + c + 1) - 1) / 2));
      return [Math.floor(at), Math.min(side - 1, Math.floor(at) + 1), at - Math.floor(at)];
    };
    for (let y = 0; y < size; y++) {
      const [top, bottom, v] = place(y, cy);
      for (let x = 0; x < size; x++) {
        const [left, right, u] = place(x, cx);
        for (let c = 0; c < 3; c++) {
          const a = data[3 * (top * side + left) + c], b = data[3 * (top * side + right) + c];
          const d = data[3 * (bottom * side + left) + c], e = data[3 * (bottom * side + right) + c];
          out.data[c * n + y * size + x] = ((a * (1 - u) + b * u) * (1 - v) + (d * (1 - u) + e * u) * v) / 255;
        }
      }
    }
    return out;
  }

  function mirrored(x) {
    const out = emptyMap(x.channels, x.height, x.width), {width} = x;
    for (let i = 0; i < out.data.length; i += width) {
      for (let j = 0; j < width; j++) out.data[i + j] = x.data[i + width - 1 - j];
    }
    return out;
  }

  // ------------------------------------------------------ BirdNet

  function bird(exported) {
    check(exported);
    const {classes, size, stored} = exported, layers = unpack(exported.layers), [head] = unpack(exported.head);
    const classify = h => {                  // logits, of the mean and the maximum of each channel
      const both = new Float32Array(2 * h.channels);
      both.set(means(h));
      both.set(maxima(h), h.channels);
      return linear(vector(both), head).data;
    };
    const photoOf = rgb => ({data: rgb, width: stored, height: stored});
    const firstView = photo => asMap(resize(withoutEdges(photo, Math.floor(stored / 20)), size));

    // Sums over the channels of their weights for class k, relu; `maximaToo`: also those for the maxima.
    const evidence = (h, k, maximaToo) => {
      const n = h.height * h.width, sums = new Float64Array(n), {weight} = head, at = 2 * k * h.channels;
      for (let c = 0; c < h.channels; c++) {
        const w = weight[at + c] + (maximaToo ? weight[at + h.channels + c] : 0);
        for (let i = 0; i < n; i++) sums[i] += w * h.data[c * n + i];
      }
      for (let i = 0; i < n; i++) if (sums[i] < 0) sums[i] = 0;
      return sums;
    };

    // The centre of mass of the class activation map of the likeliest class, x and y in -1..1.
    const camCentre = (h, logits) => {
      const cam = evidence(h, logits.indexOf(Math.max(...logits)), false);
      let sum = 0, x = 0, y = 0;
      for (let i = 0; i < cam.length; i++) {
        sum += cam[i];
        x += cam[i] * ((2 * (i % h.width) + 1) / h.width - 1);
        y += cam[i] * ((2 * Math.floor(i / h.width) + 1) / h.width - 1);
      }
      return [x / Math.max(sum, 1e-6), y / Math.max(sum, 1e-6)];
    };

    return {
      classes, size, stored,
      squash: (rgb, width, height) => squash(rgb, width, height, stored).data,
      look(rgb) {                            // one view, and Grad-CAM of every class in closed form
        const h = run(layers, firstView(photoOf(rgb))), n = h.height * h.width;
        const heat = new Float32Array(classes.length * n);
        for (let k = 0; k < classes.length; k++) heat.set(evidence(h, k, true).map(value => value / n), k * n);
        return {probabilities: softmax(classify(h)), heat, h: h.height, w: h.width};
      },
      predict(rgb) {                         // as bird.predict: two views and their mirror images
        const photo = photoOf(rgb), first = firstView(photo), h = run(layers, first), logits = classify(h);
        const centre = camCentre(h, logits).map(value => Math.min(0.3, Math.max(-0.3, 0.9 * value)));
        const second = close(resize(photo, Math.min(stored, 2 * size)), centre, size);
        const all = [softmax(logits), ...[mirrored(first), second, mirrored(second)].map(
          view => softmax(classify(run(layers, view))))];
        return {probabilities: all[0].map((_, k) => all.reduce((sum, p) => sum + p[k], 0) / all.length), centre};
      },
    };
  }

  // ------------------------------------------------------ VAE and mixture

  function vae(exported) {
    check(exported);
    const {side, mixture, prior_means: priorMeans, prior_std: priorStd, z_mean: zMean, z_std: zStd} = exported;
    const [clusterer, encoder, decoder] = ["clusterer", "encoder", "decoder"].map(name => unpack(exported[name]));
    const inverses = mixture.covariances.map(([[a, b], [c, d]]) => {
      const det = a * d - b * c;
      return {a: d / det, b: -b / det, d: a / det, logDet: Math.log(det)};
    });
    return {
      encode(x) {
        const image = {data: Float32Array.from(x), channels: 1, height: side, width: side};
        const q = clusterer.length ? softmax(run(clusterer, image).data) : Float32Array.of(1);
        const made = run(encoder, image).data, clusters = Array.from(q);
        const mu = [0, 1].map(i => {
          const start = clusters.reduce((sum, share, c) => sum + share * priorMeans[c][i], 0);
          return (start + priorStd[i] * made[i] - zMean[i]) / zStd[i];
        });
        const sigma = [0, 1].map(i => Math.exp(Math.min(4, Math.max(-10, made[2 + i])) / 2) / zStd[i]);
        return {mu, sigma, clusters};
      },
      decode(z) {
        const made = run(decoder, vector(Float32Array.from([0, 1], i => z[i] * zStd[i] + zMean[i])));
        return activation(made, "sigmoid").data;
      },
      mixture: {
        ...mixture,
        responsibilities(z) {                // p(component | z)
          const logs = mixture.weights.map((weight, k) => {
            const x = z[0] - mixture.means[k][0], y = z[1] - mixture.means[k][1];
            const {a, b, d, logDet} = inverses[k];
            return Math.log(weight) - 0.5 * (a * x * x + 2 * b * x * y + d * y * y + logDet);
          });
          const most = Math.max(...logs), shares = logs.map(value => Math.exp(value - most));
          const sum = shares.reduce((left, right) => left + right);
          return shares.map(value => value / sum);
        },
      },
    };
  }

  // A drawing, side x side of 0 (paper) to 1 (ink), as MNIST shows it: in a box of 20 pixels, its centre of mass
  // in the middle of pixel 14 of 0 to 27, where MNIST's lie; still wholly in the frame. An empty one stays empty.
  function asMnist(ink, side) {
    const out = new Float32Array(28 * 28);
    let left = side, right = 0, top = side, bottom = 0, sum = 0, cx = 0, cy = 0;
    for (let i = 0; i < ink.length; i++) {
      const x = i % side, y = Math.floor(i / side);
      sum += ink[i]; cx += ink[i] * (x + 0.5); cy += ink[i] * (y + 0.5);
      if (ink[i] < 0.1) continue;            // no more than the rim of a stroke
      left = Math.min(left, x); right = Math.max(right, x + 1);
      top = Math.min(top, y); bottom = Math.max(bottom, y + 1);
    }
    if (left >= right) return out;
    const scale = Math.max(right - left, bottom - top) / 20;       // of the drawing's pixels to one of MNIST's
    const middle = (centre, low, high) => Math.min(low + 14.5 * scale, Math.max(high - 13.5 * scale, centre));
    const x0 = middle(cx / sum, left, right) - 14.5 * scale;
    const y0 = middle(cy / sum, top, bottom) - 14.5 * scale;
    const shares = start => Array.from({length: 28}, (_, i) => {   // [drawing's pixel, its share in MNIST's]
      const from = start + i * scale, to = from + scale, parts = [];
      for (let j = Math.max(0, Math.floor(from)); j < Math.min(side, to); j++) {
        parts.push([j, (Math.min(to, j + 1) - Math.max(from, j)) / scale]);
      }
      return parts;
    });
    const columns = shares(x0), rows = shares(y0);
    for (let y = 0; y < 28; y++) {
      for (let x = 0; x < 28; x++) {
        for (const [v, b] of rows[y]) {
          for (const [u, a] of columns[x]) out[28 * y + x] += a * b * ink[v * side + u];
        }
      }
    }
    return out;
  }

  return {bird, vae, asMnist};
})();
if (typeof module !== "undefined") module.exports = Nets;
