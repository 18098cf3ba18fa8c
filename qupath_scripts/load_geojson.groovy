/*
 * Loads the GeoJSON that stqp wrote of an image into that image.
 * For images of a project that stqp did not write into: it replaces what stqp's earlier runs of the same source
 * left there and touches nothing else. Nuclei that somebody corrected since stay, and new ones in their place
 * are left out.
 *
 * In QuPath: Automate > Project scripts > load geojson, then Run for the open image, or Run > Run for project.
 * Command line: QuPath script load_geojson.groovy --project=project.qpproj --args FOLDER --save
 * Arguments: 1. a .geojson file, or a folder with IMAGE/*.geojson, stqp/IMAGE/*.geojson or IMAGE.geojson.
 *            Without: the project's folder, then the folder of the image.
 *            2. and more: discard-corrections: replace corrected nuclei as well; all: load objects that are not
 *            stqp's too, such as the regions in a file of export_geojson, where their ids are not there yet.
 * QuPath 0.4 to 0.7. Changes objects of the image; save it afterwards.
 */

import com.google.gson.JsonParser
import com.google.gson.stream.JsonReader
import com.google.gson.stream.JsonToken
import groovy.transform.CompileStatic
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32
import org.locationtech.jts.geom.LineString
import org.locationtech.jts.geom.util.LinearComponentExtracter
import qupath.lib.roi.GeometryROI
import qupath.lib.roi.PolygonROI
import qupath.lib.roi.RectangleROI
import qupath.lib.roi.interfaces.ROI

def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
def discard = options.remove("discard-corrections")
def withForeign = options.remove("all")
def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException("load_geojson works on an image: open one, or choose Run > Run for project")
def hierarchy = imageData.getHierarchy()
def entry = getProjectEntry()

// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def note = { object, key, value -> since06 ? object.getMetadata().put(key, value) : object.storeMetadataValue(key, value) }
def className = { it.getPathClass() == null || it.getPathClass() == PathClass.getNullClass() ? "" : it.getPathClass().toString() }
// "<class>|<checksum of the outline>", as stqp notes what it wrote
def isCorrected = {
    def written = metadata(it).get("stqp.written")
    written != null && written != className(it) + "|" + checksum(it.getROI())
}

// ---- the files of this image

def paths = imageData.getServer().getURIs().collect { it.getPath() }.findAll { it != null }.collect { new File(it) }
def names = [entry?.getImageName(), *paths*.getName()].findAll { it }
names += names.findAll { it.contains(".") }.collect { it.substring(0, it.lastIndexOf(".")) }
// names that Windows, macOS and Linux allow, as stqp makes them
def safe = names.collect {
    def text = it.replaceAll('[<>:"/\\\\|?*\\x00-\\x1f]', "_").trim().replaceAll('[. ]+$', "")
    text.substring(0, Math.min(100, text.length()))
}
names = (names + safe + safe.findAll { entry != null }.collect { "${it}-${entry.getID()}".toString() }).unique()
def isGeojson = { it.isFile() && it.getName().toLowerCase() ==~ /.*\.(geojson|json)/ }
def filesIn = { File folder ->
    [folder, new File(folder, "stqp")].collectMany { place ->
        names.collectMany { name ->
            def own = new File(place, name)
            def inside = own.isDirectory() ? (own.listFiles() as List).findAll { it.getName().endsWith(".geojson") } : []
            inside.sort() + [new File(place, name + ".geojson")].findAll { it.isFile() }
        }
    }.unique()
}
def files = []
if (options) {
    def given = new File(options[0])
    if (!given.exists())
        throw new FileNotFoundException("there is no file or folder ${given}; give one that holds stqp's GeoJSON")
    files = isGeojson(given) ? [given] : filesIn(given)
} else {
    def places = [getProject()?.getPath()?.getParent()?.toFile(), *paths*.getParentFile()].findAll { it != null }
    files = places.findResult { filesIn(it) ?: null } ?: []
}
if (!files) {
    println "${names[0]}: no GeoJSON found" + (options ? " in ${options[0]}" : "; give a file or folder as argument")
    return
}

// ---- load

for (file in files) {
    def loaded = []
    def broken = 0
    def reason = null
    features(file) { feature ->
        // taken out and put back, as 0.4 and 0.5 lose the metadata of detections
        def noted = feature.getAsJsonObject("properties")?.remove("metadata")
        try {
            def object = GsonTools.getInstance().fromJson(feature, PathObject.class)
            noted?.getAsJsonObject()?.entrySet()?.each { note(object, it.key, it.value.getAsString()) }
            loaded << object
        } catch (RuntimeException e) {
            broken++
            reason = reason ?: e.toString()
        }
    }
    if (broken)
        println "${file.getName()}: ${broken} objects cannot be read and are left out; the first: ${reason}"
    def foreign = loaded.findAll { metadata(it).get("stqp.source") == null }
    if (foreign && !withForeign) {
        println "${file.getName()}: ${foreign.size()} objects are not stqp's and are left out"
        loaded.removeAll(foreign as Set)
    }
    if (!loaded)
        continue

    def sources = loaded.collect { metadata(it).get("stqp.source") }.findAll { it != null } as Set
    def present = hierarchy.getAllObjects(false).findAll { metadata(it).get("stqp.source") in sources }
    def kept = discard ? [] : present.findAll { isCorrected(it) }
    def old = present.toSet() - kept
    def others = hierarchy.getAllObjects(false).findAll { !old.contains(it) }.collect { it.getID() }.toSet()
    def keptRois = kept*.getROI()
    def fresh = loaded.findAll {
        !others.contains(it.getID()) && (metadata(it).get("stqp.source") == null || !insideAny(it.getROI(), keptRois))
    }
    fresh.each {
        // the file rounds, and QuPath may: what is noted is what arrived, or all would seem corrected
        def written = metadata(it).get("stqp.written")
        if (written != null && !written.endsWith("|changed"))
            note(it, "stqp.written", written.substring(0, written.lastIndexOf("|") + 1) + checksum(it.getROI()))
    }
    hierarchy.removeObjects(old, true)
    hierarchy.addObjects(fresh)
    println "${names[0]}: ${fresh.size()} objects loaded from ${file.getName()}, ${old.size()} replaced, " +
            "${kept.size()} corrected ones kept, ${loaded.size() - fresh.size()} left out in their place"

    // classes that the project lacks
    def classes = fresh*.getPathClass().findAll { it != null }.unique()
    def list = getQuPath()?.getAvailablePathClasses()
    if (list != null)
        Platform.runLater { list.addAll(classes - list) }
    else if (getProject() != null && !getProject().getPathClasses().containsAll(classes))
        getProject().setPathClasses(getProject().getPathClasses() + (classes - getProject().getPathClasses()))
}

/** Reads the features of a file one at a time, as a large one does not fit into memory. */
static void features(File file, Closure action) {
    file.withReader("UTF-8") { text ->
        def reader = new JsonReader(text)
        if (reader.peek() == JsonToken.BEGIN_OBJECT) {
            reader.beginObject()
            while (reader.hasNext() && reader.nextName() != "features")
                reader.skipValue()
        }
        if (reader.peek() != JsonToken.BEGIN_ARRAY)
            throw new IllegalArgumentException("${file} has no list of features; expected GeoJSON as stqp writes it")
        reader.beginArray()
        while (reader.hasNext())
            action(JsonParser.parseReader(reader).getAsJsonObject())
    }
}

/** Whether the centre of a region lies in one of others. */
@CompileStatic
static boolean insideAny(ROI roi, List<ROI> others) {
    double x = roi.getCentroidX(), y = roi.getCentroidY()
    for (ROI other : others) {
        if (x >= other.getBoundsX() && x <= other.getBoundsX() + other.getBoundsWidth() &&
                y >= other.getBoundsY() && y <= other.getBoundsY() + other.getBoundsHeight() && other.contains(x, y))
            return true
    }
    return false
}

/** Checksum of an outline as stqp notes it: of its vertices as floats, sorted by x, then y. */
@CompileStatic
static String checksum(ROI roi) {
    List<double[]> vertices = []
    boolean rounded = false
    if (roi instanceof GeometryROI) {
        List<LineString> rings = LinearComponentExtracter.getLines(roi.getGeometry()) as List<LineString>
        for (LineString ring : rings) {
            def places = ring.getCoordinates()
            for (int i = 0; i < places.length - 1; i++)
                vertices.add([places[i].getX(), places[i].getY()] as double[])
        }
        rounded = rings.size() != 1 // 0.6 and later round these when they save
    } else if (roi instanceof PolygonROI || roi instanceof RectangleROI) {
        for (point in roi.getAllPoints())
            vertices.add([point.getX(), point.getY()] as double[])
        if (vertices.size() > 1 && Arrays.equals(vertices.first(), vertices.last()))
            vertices.remove(vertices.size() - 1)
    } else {
        return "another shape"
    }
    List<float[]> sorted = []
    for (double[] v : vertices) {
        double x = rounded ? Math.floor(v[0] / 0.01d + 0.5d) * 0.01d : v[0]
        double y = rounded ? Math.floor(v[1] / 0.01d + 0.5d) * 0.01d : v[1]
        sorted.add([x + 0d, y + 0d] as float[]) // -0 becomes 0
    }
    sorted.sort { float[] a, float[] b -> Float.compare(a[0], b[0]) ?: Float.compare(a[1], b[1]) }
    def buffer = ByteBuffer.allocate(8 * sorted.size()).order(ByteOrder.LITTLE_ENDIAN)
    for (float[] v : sorted)
        buffer.putFloat(v[0]).putFloat(v[1])
    def crc = new CRC32()
    crc.update(buffer.array())
    return String.format("%08x", crc.getValue())
}
